"""Plan a training recipe's tables for machines that you do not have: no GPU, no process group, no data.

    python recipes/plan_sharding.py train_dcnv2 mlperf --topology 2x8:h100
    python recipes/plan_sharding.py train_dlrm criteo-1tb --topology 1x8:a100-40 1x8:h100 p5.48xlarge
    python recipes/plan_sharding.py train_dlrm criteo-1tb --topology cluster.toml -- --tables.kind quotient_remainder
    python recipes/plan_sharding.py train_dcnv2 mlperf --explain t_cat_0 --since plan.json

Options after ``--`` are the recipe's, which trains this very plan with ``--sharding.plan plan.json``. Prints where
every table lies, memory and estimated time per rank, and one line per topology; writes plan.json. Exit code 0: fits;
3: a topology does not; 2: bad arguments. The first one takes seconds: 15.7 of 80 GB on the fullest of 16 ranks, 4.0 ms
per step for the tables of the slowest.
"""

import importlib.util
import json
import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
import tyro
from iopath.common.file_io import g_pathmgr
from tyro.conf import Positional

from dlrm_torchrec.datasets.open import load_spec
from dlrm_torchrec.presets import parse
from dlrm_torchrec.sharding.estimate import EstimateStats, read_estimates
from dlrm_torchrec.sharding.estimate_text import compare, describe_ranks, diff, explain
from dlrm_torchrec.sharding.plan import DoesNotFitError, describe_plan, make_plan
from dlrm_torchrec.sharding.topology import parse_topology

FITS, BAD_ARGUMENTS, DOES_NOT_FIT = 0, 2, 3


@dataclass(frozen=True, kw_only=True)
class Config:
    recipe: Positional[str]  # a training recipe: its name here, or the path of your copy
    preset: Positional[str] = ""  # of the recipe; its first one by default
    topology: tuple[str, ...] = ("1x8:h100",)  # hosts x devices : machine, a cloud instance, or a TOML file
    explain: tuple[str, ...] = ()  # tables to say why they are sharded as they are
    since: str = ""  # an older plan.json, to be compared topology by topology
    output: str = "plan.json"


def load_recipe(name: str) -> ModuleType:
    """The recipe's file as a module: what is planned is what it trains."""
    beside = Path(__file__).parent / f"{name}.py"
    path = beside if beside.exists() else Path(name)
    if not path.is_file():
        raise ValueError(f"recipe must be a file, or the name of one beside this: got {name!r}; try train_dlrm")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def main(cfg: Config, options: list[str]) -> int:
    recipe = load_recipe(cfg.recipe)
    preset, trained = parse(recipe.PRESETS, [*([cfg.preset] if cfg.preset else []), *options])
    prepared = g_pathmgr.exists(f"{trained.data}/dataset.json")
    spec = load_spec(trained.data, trained.shape) if prepared else trained.shape
    print(
        f"{cfg.recipe} {preset}: {spec.name}, " + ("as prepared" if prepared else "not prepared here: published sizes")
    )
    estimates, refused = [], []
    for text in cfg.topology:
        topology = parse_topology(text)
        model, tables = recipe.build(trained, spec, topology.world_size, torch.device("cpu"))
        stats = EstimateStats(text)
        batch_size = trained.batch_size // topology.world_size
        try:
            plan = make_plan(model, tables, topology, batch_size, trained.sharding, spec, stats=stats)
        except DoesNotFitError as error:
            refused.append(f"{text}: {error}")
            continue
        assert stats.found is not None
        estimates.append(stats.found)
        print(f"\n{text}, {batch_size} rows per rank\n{describe_plan(plan, tables, topology.world_size)}")
        print("\n".join([describe_ranks(stats.found), *(explain(stats.found, table) for table in cfg.explain)]))
    older = {estimate.topology: estimate for estimate in read_estimates(cfg.since)} if cfg.since else {}
    for estimate in estimates:
        if estimate.topology in older:
            changes = diff(older[estimate.topology], estimate) or "the same plan"
            print(f"\n{estimate.topology} since {cfg.since}\n{changes}")
    if estimates:
        print(f"\n{compare(estimates)}")
        with g_pathmgr.open(cfg.output, "w") as stream:
            json.dump([estimate.to_json() for estimate in estimates], stream, indent=1)
    print("\n".join(refused), file=sys.stderr)
    return DOES_NOT_FIT if refused else FITS


def command(arguments: list[str]) -> int:
    """The exit code of a command line."""
    split = arguments.index("--") if "--" in arguments else len(arguments)
    logging.disable(logging.WARNING)  # TorchRec's, of tables that every rank holds
    config = tyro.cli(Config, args=arguments[:split], description=__doc__)
    try:
        return main(config, arguments[split + 1 :])
    except ValueError as error:
        print(error, file=sys.stderr)
        return BAD_ARGUMENTS


if __name__ == "__main__":
    sys.exit(command(sys.argv[1:]))
