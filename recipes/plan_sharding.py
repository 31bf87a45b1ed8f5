"""Plan a training recipe's tables for machines that you do not have: no GPU, no process group, no data.

    python recipes/plan_sharding.py train_dcnv2 --preset mlperf --topology 2x8:h100
    python recipes/plan_sharding.py train_dlrm --preset criteo-1tb --topology 1x8:a100-40 1x8:h100 p5.48xlarge
    python recipes/plan_sharding.py train_dcnv2 --preset mlperf --topology 1x1:a100-40 --fit
    python recipes/plan_sharding.py train_dlrm --topology cluster.toml -- --tables.kind quotient_remainder
    python recipes/plan_sharding.py explain t_cat_0 plan.json
    python recipes/plan_sharding.py diff old.json plan.json

Options after ``--`` are the recipe's. The recipe trains this very plan with ``--plan plan.json``, and the tables that
``--fit`` chose with ``--tables.file tables.json``. This prints where every table lies, memory and estimated time per
rank, and one line per topology, and writes plan.json and the page plan.html. The exit code is 0 if the tables fit
every topology, 3 if they do not, and 2 for bad arguments.
Expected: the first command takes seconds; the fullest of 16 ranks holds 41 of 80 GB, the slowest needs 3.1 ms a step.
"""

import json
import shlex
import sys
from dataclasses import dataclass, replace
from typing import Any

import tyro
from tyro.conf import Positional

from dlrm_torchrec.command_line import parse
from dlrm_torchrec.recipe import SequenceConfig, TrainingRecipe, load_training_recipe, ranks_items

FITS, BAD_ARGUMENTS, DOES_NOT_FIT = 0, 2, 3


@dataclass(frozen=True, kw_only=True)
class Config:
    recipe: Positional[str]  # A training recipe: its name here, or the path of your copy.
    preset: str = ""  # Preset of the recipe; empty means its first one.
    topology: tuple[str, ...] = ("1x8:h100",)  # Hosts x devices : machine, a cloud instance, or a TOML file.
    fit: bool = False  # Choose how each table is stored, so that the topology holds them at the least loss.
    fit_bytes: float = 0  # With --fit: maximum bytes of tables and optimizer; 0 means what the topology holds.
    fit_output: str = "tables.json"  # With --fit: file for the chosen settings of single tables.
    explain: tuple[str, ...] = ()  # Names of tables whose sharding is explained.
    all_ranks: bool = False  # Print every rank, also if there are more than 16 that differ.
    output: str = "plan.json"  # File for the plans.
    page: str = "plan.html"  # File for the page that shows them.
    debug: bool = False  # Show the call stack of every error.


def configure(arguments: list[str]) -> tuple[Config, list[str]]:
    """The config, and the options of the recipe after ``--``."""
    split = arguments.index("--") if "--" in arguments else len(arguments)
    return tyro.cli(Config, args=arguments[:split], description=__doc__), arguments[split + 1 :]


if __name__ == "__main__" and sys.argv[1:2] not in (["explain"], ["diff"]):
    configure(sys.argv[1:])  # before torch is imported, so that --help and mistakes are answered at once

from iopath.common.file_io import g_pathmgr

from dlrm_torchrec.datasets.open import load_statistics
from dlrm_torchrec.datasets.sequences.open import summarise_next_items, summarise_samples
from dlrm_torchrec.datasets.summary import Summary, summarise
from dlrm_torchrec.embeddings.tables import write_tables
from dlrm_torchrec.sharding.cluster.topology import Cluster, parse_cluster
from dlrm_torchrec.sharding.dry_run import DryRun
from dlrm_torchrec.sharding.estimate.estimate import Estimate, read_estimates
from dlrm_torchrec.sharding.estimate.page.page import page
from dlrm_torchrec.sharding.estimate.text import compare, describe_ranks, describe_tables, diff, explain
from dlrm_torchrec.sharding.planner.fit import Choice, describe_choices
from dlrm_torchrec.sharding.planner.shortfall import DoesNotFitError
from dlrm_torchrec.terminal import commands
from dlrm_torchrec.terminal.closing import say_closing
from dlrm_torchrec.terminal.failure import run_with_code
from dlrm_torchrec.train.fit import fit_to_rows, marks


def main(cfg: Config, options: list[str]) -> int:
    recipe = load_training_recipe(cfg.recipe)
    preset, trained = parse(recipe.PRESETS, [*([cfg.preset] if cfg.preset else []), *options])
    clusters = {text: parse_cluster(text) for text in cfg.topology}
    if cfg.fit and len(clusters) > 1:
        raise ValueError(f"tables must be fitted to one topology at a time: got {list(clusters)}; name one")
    prepared = g_pathmgr.exists(f"{trained.data}/dataset.json")
    data = summary_of(recipe, trained) if prepared else Summary(spec=trained.shape)
    (trained, _), spec = fit_to_rows(trained, data), data.spec
    if isinstance(trained, SequenceConfig):
        spec = trained.samples.of(spec)
    access = load_statistics(trained.data) if prepared else {}
    known = f"as prepared, {len(access)} features profiled" if prepared else "not prepared here: published sizes"
    print(f"{cfg.recipe} {preset}: {spec.name}, {known}")
    dry_run = DryRun(recipe.build, spec, access)
    estimates, fitting, refused = [], [], []
    for text, cluster in clusters.items():
        try:
            estimate = fit_tables(cfg, dry_run, trained, cluster) if cfg.fit else dry_run(trained, cluster, text)
        except DoesNotFitError as error:
            nearest = [*dry_run.nearest(trained, cluster)] or ["none of those tried"]
            refused.append("\n  ".join([f"{text}: {error}. Nearest changes that fit, each planned:", *nearest]))
            continue
        estimates.append(estimate)
        fitting.append(cluster)
        print(f"\n{text}, {estimate.batch_size} rows per rank\n{describe_tables(estimate)}")
        print(
            "\n".join(
                [
                    describe_ranks(estimate, all_ranks=cfg.all_ranks),
                    *(explain(estimate, table) for table in cfg.explain),
                ]
            )
        )
    if estimates:
        print(f"\n{compare(estimates)}")
        with g_pathmgr.open(cfg.output, "w") as stream:
            json.dump([estimate.to_json() for estimate in estimates], stream, indent=1)
        with g_pathmgr.open(cfg.page, "w") as stream:
            stream.write(page(estimates, f"{cfg.recipe} {preset}"))
        close(cfg, [preset, *options], fitting[0], estimates[0])
    for refusal in refused:
        print(refusal, file=sys.stderr)
    return DOES_NOT_FIT if refused else FITS


def summary_of(recipe: TrainingRecipe, trained: Any) -> Summary:
    """The summary of prepared data; events are read only where a setting is to follow from their number."""
    reads_histories = isinstance(trained, SequenceConfig)
    if reads_histories and marks(trained):
        summarise_cut = summarise_next_items if ranks_items(recipe) else summarise_samples
        return summarise_cut(trained.data, trained.shape, trained.samples)
    return summarise(trained.data, trained.shape)


def close(cfg: Config, options: list[str], cluster: Cluster, estimate: Estimate) -> None:
    """Say what was written and what to do with it; the commands are for the first topology that fits."""
    widest = max(estimate.tables, key=lambda table: len(table.shards))
    fitted = ["--tables.file", cfg.fit_output] if cfg.fit else []
    job = ["torchx", "run", "dlrm.train", "-j", f"{cluster.hosts}x{cluster.devices_per_host}", cfg.recipe, *options]
    say_closing(
        wrote=[cfg.output, *fitted[1:], f"{cfg.page} (open it in a browser)"],
        next=[
            commands.start("plan_sharding", "explain", widest.name, cfg.output),
            shlex.join([*job, *fitted, "--plan", cfg.output]),
        ],
    )


def fit_tables(cfg: Config, dry_run: DryRun, trained: Any, cluster: Cluster) -> Estimate:
    """The plan of the tables that lose least among those that fit; writes their config for the training recipe."""
    fitted = replace(trained, tables=replace(trained.tables, file=cfg.fit_output))

    def attempt(chosen: dict[str, Choice]) -> Estimate:
        write_tables(cfg.fit_output, {name: choice.config for name, choice in chosen.items()}, trained.tables)
        return dry_run(fitted, cluster, cfg.topology[0])

    chosen, _ = dry_run.fit(trained, cluster, attempt, int(cfg.fit_bytes))
    print(f"\n{describe_choices(chosen)}\ntrain it with --tables.file {cfg.fit_output} --plan {cfg.output}")
    return attempt(chosen)


def answer(arguments: list[str]) -> int:
    match arguments:
        case ["explain", table, path]:
            print("\n".join(explain(estimate, table) for estimate in read_estimates(path)))
            return FITS
        case ["diff", before, after]:
            print(diff(read_estimates(before), read_estimates(after)))
            return FITS
    return main(*configure(arguments))


def command(arguments: list[str]) -> int:
    """The exit code of a command line."""
    return run_with_code(BAD_ARGUMENTS, answer, arguments)


if __name__ == "__main__":
    sys.exit(command(sys.argv[1:]))
