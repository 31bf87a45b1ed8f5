"""Evaluate a checkpoint on any number of ranks: metrics, calibration, and what each feature is worth.

    python recipes/evaluate.py train_dlrm runs/train_dlrm/demo
    torchrun --standalone --nproc_per_node 2 recipes/evaluate.py train_dlrm runs/train_dlrm/demo --ablation
    python recipes/evaluate.py my_copy.py runs/my_copy/census --split test --plot calibration.png

The first argument is the recipe that trained the run, the second its folder. ``--ablation`` evaluates once more for
every feature, with 0 in its place in every row: what AUC then loses is what this model gets from it. Writes
evaluation.json into the run's folder. Expected: the metrics that the run printed last, on any number of ranks.
"""

import json
import sys
from dataclasses import asdict, dataclass
from typing import TypedDict

import tyro
from iopath.common.file_io import g_pathmgr
from torchrec.distributed.model_parallel import DistributedModelParallel
from tyro.conf import Positional

from dlrm_torchrec.datasets.ablation import without
from dlrm_torchrec.datasets.open import load_spec
from dlrm_torchrec.datasets.stream import Ranks
from dlrm_torchrec.recipe import load_recipe, restore
from dlrm_torchrec.sharding.cluster.topology import live_topology
from dlrm_torchrec.sharding.config import ShardingConfig
from dlrm_torchrec.sharding.plan import make_plan
from dlrm_torchrec.train.checkpoints.checkpoint import Checkpoints
from dlrm_torchrec.train.log import prefixed
from dlrm_torchrec.train.metrics.binary import predict, ranking_metrics
from dlrm_torchrec.train.metrics.reliability import calibration_bins, expected_calibration_error, plot_calibration
from dlrm_torchrec.train.world import World, join_world


@dataclass(frozen=True, kw_only=True)
class Config:
    recipe: Positional[str]  # that trained the run: its name here, or the path of your copy
    run: Positional[str]  # its folder, with config.json and checkpoints
    step: int | None = None  # of the checkpoint; the newest by default
    data: str = ""  # another prepared folder with the same features; the run's by default
    split: str = "val"
    batch_size: int = 8192  # over all ranks
    bins: int = 20  # of the calibration curve
    plot: str = ""  # a picture of the calibration curve to write
    ablation: bool = False  # evaluate without each feature, too
    sharding: ShardingConfig = ShardingConfig()


class Evaluation(TypedDict, total=False):
    """What evaluation.json holds; metrics and calibration are known on rank 0 alone."""

    step: int
    split: str
    metrics: dict[str, float]
    calibration: list[dict[str, float]]  # one for each bin
    ablation: dict[str, dict[str, float]]  # by feature: the AUC and the log-loss that are lost without it


def main(cfg: Config) -> dict[str, float]:
    recipe = load_recipe(cfg.recipe)
    if not hasattr(recipe, "open_streams"):
        raise ValueError(
            f"recipe must read binary labels by open_streams: got {cfg.recipe!r}, which does not; type the command "
            "of the finished run again, which prints its metrics"
        )
    config_path = f"{cfg.run}/config.json"
    if not g_pathmgr.exists(config_path):
        raise ValueError(f"run must be the folder of a run, with config.json: got {cfg.run!r}; name one under runs/")
    with g_pathmgr.open(config_path, "r") as stream:
        trained = restore(recipe.Config, json.load(stream))
    data = cfg.data or trained.data
    spec = load_spec(data, trained.shape)
    with join_world(trained.seed) as world:
        model, tables = recipe.build(trained, spec, world.size, world.device)
        topology = live_topology(world.size, world.local_size, world.device)
        plan = make_plan(model, tables, topology, cfg.batch_size // world.size, cfg.sharding, spec, world.control)
        model = DistributedModelParallel(
            model, device=world.device, plan=plan, sharders=plan.sharders, init_data_parallel=world.needs_ddp
        )
        progress = Checkpoints(f"{cfg.run}/checkpoints", trained.checkpoint, world).load_model(model, cfg.step)
        ranks = Ranks(cfg.batch_size, world.rank, world.size)
        streams = recipe.open_streams(data, spec, ranks, trained.rows, trained.epochs, trained.seed, world.size)
        if cfg.split not in streams:
            raise ValueError(f"split must be one of {data}: got {cfg.split!r}; name one of {sorted(streams)}")
        stream = streams[cfg.split]

        scores = predict(model, stream.batches(), world)
        found: Evaluation = {"step": progress.step, "split": cfg.split}
        if scores is not None:
            logits, labels = scores
            bins = calibration_bins(logits, labels, cfg.bins)
            metrics = ranking_metrics(logits, labels) | {"calibration_error": expected_calibration_error(bins)}
            found |= {"metrics": metrics, "calibration": [asdict(each) for each in bins]}
            if cfg.plot:
                plot_calibration(bins, cfg.plot)
        if cfg.ablation:
            lost: dict[str, dict[str, float]] = {}
            for feature in spec.feature_names:
                without_it = predict(model, (without(batch, feature, spec) for batch in stream.batches()), world)
                if without_it is not None:
                    changed = ranking_metrics(*without_it)
                    lost[feature] = {name: metrics[name] - changed[name] for name in ("auc", "logloss")}
            found["ablation"] = dict(sorted(lost.items(), key=lambda each: -each[1]["auc"]))
        return report(cfg, found, world)


def report(cfg: Config, found: Evaluation, world: World) -> dict[str, float]:
    """Write and print what rank 0 found; the last line is one JSON object."""
    if not world.is_main:
        return {}
    with g_pathmgr.open(f"{cfg.run}/evaluation.json", "w") as stream:
        json.dump(found, stream, indent=1)
    for feature, lost in found.get("ablation", {}).items():
        print(f"without {feature}: AUC {-lost['auc']:+.5f}, log-loss {-lost['logloss']:+.5f}", file=sys.stderr)
    final = prefixed(f"{cfg.split}/", found["metrics"]) | {"steps": found["step"]}
    print(json.dumps(final), flush=True)
    return final


if __name__ == "__main__":
    try:
        main(tyro.cli(Config, description=__doc__))
    except ValueError as error:
        sys.exit(f"error: {error}")
