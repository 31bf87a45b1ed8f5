"""Evaluate a checkpoint on any number of ranks: metrics, calibration, and what each feature is worth.

    python recipes/evaluate.py train_dlrm runs/train_dlrm/demo
    torchrun --standalone --nproc_per_node 2 recipes/evaluate.py train_dlrm runs/train_dlrm/demo --ablation
    python recipes/evaluate.py my_copy.py runs/my_copy/census --split test --plot calibration.png
    python recipes/evaluate.py train_dlrm_daily runs/train_dlrm_daily/demo --split day-0029

The first argument is the recipe that trained the run, the second is the run's folder. ``--ablation`` evaluates once
more for every feature, with 0 in its place in every row: the AUC (of numbers, the R²) that is lost is what this model
gains by the feature. A run that ranks items, as train_mf does, is judged by the ranks of those that are held out. Data
that mean something else than those of the training are refused. For a run over windows, ``--split`` names a window, and
without it, the newest one is taken; the model may have trained on its rows.
The result is written to evaluation.json in the run's folder.
Expected: the metrics that the run printed last, on any number of ranks.
"""

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

from tyro.conf import Positional

from dlrm_torchrec.command_line import read_options
from dlrm_torchrec.recipe import (
    SequenceConfig,
    load_judged_recipe,
    load_training_recipe,
    open_splits,
    ranks_items,
    read_config,
)
from dlrm_torchrec.schema import DatasetSpec
from dlrm_torchrec.sharding.config import ShardingConfig


@dataclass(frozen=True, kw_only=True)
class Config:
    recipe: Positional[str]  # The recipe that trained the run: its name here, or the path of your copy.
    run: Positional[str]  # The run's folder, with config.json and checkpoints.
    step: int | Literal["best"] | None = None  # Step of the checkpoint, or best by validation; None means the newest.
    data: str = ""  # Another prepared folder with the same features; empty means the run's own data.
    split: str = "val"  # The split whose rows are evaluated, or a window's name; val is also the newest window.
    batch_size: int = 0  # Rows, or samples of histories, of a global batch; 0 means 8192, or as many as in training.
    bins: int = 20  # Number of bins of the calibration curve.
    plot: str = ""  # File for a picture of the calibration curve; empty means none.
    gauc: str = ""  # Feature for the mean of the AUCs of its ids' rows; empty means none, or the users of histories.
    ablation: bool = False  # Also evaluate without each feature.
    sharding: ShardingConfig = ShardingConfig()  # Which rank holds which piece of which table.
    debug: bool = False  # Show the call stack of every error.


if __name__ == "__main__":
    COMMAND_LINE = read_options(Config, __doc__)  # before torch is imported, so that --help answers at once

import torch
from iopath.common.file_io import g_pathmgr
from torchrec.distributed.model_parallel import DistributedModelParallel

from dlrm_torchrec.datasets.ablation import without
from dlrm_torchrec.datasets.open import load_spec
from dlrm_torchrec.datasets.sequences.next_items import next_item_spec
from dlrm_torchrec.datasets.spec_checks import check_same_meaning
from dlrm_torchrec.datasets.stream import Ranks
from dlrm_torchrec.datasets.windows.judging import windows_by_name
from dlrm_torchrec.sharding.cluster.topology import live_topology
from dlrm_torchrec.sharding.plan import make_plan
from dlrm_torchrec.terminal import commands
from dlrm_torchrec.terminal.closing import say_closing
from dlrm_torchrec.terminal.failure import run
from dlrm_torchrec.train.checkpoints.checkpoint import Checkpoints
from dlrm_torchrec.train.checkpoints.folder import checkpoint_path
from dlrm_torchrec.train.checkpoints.marker import read_progress
from dlrm_torchrec.train.checkpoints.progress import Progress
from dlrm_torchrec.train.log import prefixed
from dlrm_torchrec.train.metrics.grouped_auc import grouped_auc, noting_ids
from dlrm_torchrec.train.metrics.labels import label_metrics
from dlrm_torchrec.train.metrics.leave_one_out import evaluate_leave_one_out
from dlrm_torchrec.train.metrics.next_item import evaluate
from dlrm_torchrec.train.metrics.reliability import calibration_bins, expected_calibration_error, plot_calibration
from dlrm_torchrec.train.metrics.scores import predict
from dlrm_torchrec.train.output.closing import main_metric
from dlrm_torchrec.train.speed import use_speed
from dlrm_torchrec.train.world import World, join_world


def main(cfg: Config) -> dict[str, float]:
    over_windows = hasattr(load_training_recipe(cfg.recipe).Config, "windows")
    recipe = load_training_recipe(cfg.recipe) if over_windows else load_judged_recipe(cfg.recipe)
    trained = read_config(recipe, cfg.run)
    data = cfg.data or trained.data
    progress = read_progress(checkpoint_path(f"{cfg.run}/checkpoints", cfg.step))
    open_rows = windows_of if over_windows else splits_of
    spec, open_streams = open_rows(recipe, trained, data, progress)
    check_same_meaning(DatasetSpec.from_json(progress.identity["spec"]), spec, data)
    if (cfg.plot or cfg.gauc) and spec.target == "number":
        raise ValueError(f"plot and gauc must be for labels 0 or 1: got numbers in {data}; leave them out")
    if (cfg.plot or cfg.gauc or cfg.ablation) and ranks_items(recipe):
        raise ValueError(f"plot, gauc and ablation must be for rows with labels: got {cfg.recipe!r}; leave them out")
    groups = [feature.name for feature in spec.sparse]
    if cfg.gauc and cfg.gauc not in groups:
        raise ValueError(f"gauc must be one of {groups}: got {cfg.gauc!r}; name one of them")
    measure = partial(label_metrics, labels=[label.name for label in spec.labels], target=spec.target, learned=False)
    with join_world(trained.seed) as world:
        # the model of the run, sharded over these ranks, with the weights of its checkpoint
        model, tables = recipe.build(trained, spec, world.size, world.device)
        use_speed(model, trained.speed, compiled=False)
        topology = live_topology(world.device, world_size=world.size, local_size=world.local_size)
        batch_size = cfg.batch_size or (8192 if spec.history is None else trained.batch_size)
        share = batch_size // world.size  # rows of one rank
        plan = make_plan(model, tables, topology, cfg.sharding, batch_size=share, spec=spec, group=world.control)
        model = DistributedModelParallel(
            model, device=world.device, plan=plan, sharders=plan.sharders, init_data_parallel=world.needs_ddp
        )
        Checkpoints(f"{cfg.run}/checkpoints", trained.checkpoint, world).load_model(model, progress.step)

        # the rows to evaluate
        ranks = Ranks(batch_size, world.rank, world.size)
        streams = open_streams(ranks)
        if cfg.split not in streams:
            raise ValueError(f"split must be one of {data}: got {cfg.split!r}; name one of {sorted(streams)}")
        stream = streams[cfg.split]
        result: dict[str, Any] = {"step": progress.step, "split": cfg.split}

        # of a recipe that ranks items: the ranks of those that are held out
        if ranks_items(recipe):
            rank = evaluate if spec.history else partial(evaluate_leave_one_out, user=trained.columns[0])
            result["metrics"] = rank(model, stream.batches(), world, learned=False)
            return report(cfg, result, world, advice=[commands.start("quantize_dlrm", cfg.recipe, cfg.run)])

        # metrics, and the calibration of the main label; each rank keeps the scores of its rows
        ids: list[torch.Tensor] = []  # of the feature that groups rows
        grouped = bool(cfg.gauc) or spec.history is not None
        batches = noting_ids(stream.batches(), cfg.gauc, ids) if grouped else stream.batches()
        scores = predict(model, batches, world)
        metrics = result["metrics"] = measure(scores)
        if grouped:
            metrics |= grouped_auc(scores, torch.cat(ids))
        if spec.target == "binary":
            bins = calibration_bins(*scores.of_label(0), count=cfg.bins)
            metrics["calibration_error"] = expected_calibration_error(bins)
            result["calibration"] = [asdict(each) for each in bins]
            if cfg.plot and world.is_main:
                plot_calibration(bins, cfg.plot)

        # once more without each feature
        if cfg.ablation:
            lost: dict[str, dict[str, float]] = {}
            first, second = ("auc", "logloss") if spec.target == "binary" else ("r2", "rmse")
            for feature in spec.feature_names:
                changed = predict(model, (without(batch, feature, spec) for batch in stream.batches()), world)
                worse = measure(changed)
                lost[feature] = {name: metrics[name] - worse[name] for name in (first, second)}
            result["ablation"] = dict(sorted(lost.items(), key=lambda each: -each[1][first]))
        more = [] if cfg.ablation else [commands.start("evaluate", cfg.recipe, cfg.run, "--ablation")]
        serve = [] if over_windows else [commands.start("quantize_dlrm", cfg.recipe, cfg.run)]  # windows are published
        return report(cfg, result, world, advice=[*more, *serve])


Rows = tuple[DatasetSpec, Callable[[Ranks], Mapping[str, Any]]]  # their spec, and what opens their streams by name


def splits_of(recipe: Any, trained: Any, data: str, _: Progress) -> Rows:
    """The splits of the data."""
    spec = load_spec(data, trained.shape)
    spec = trained.samples.of(spec) if isinstance(trained, SequenceConfig) else spec
    spec = next_item_spec(spec) if spec.history and ranks_items(recipe) else spec
    return spec, lambda ranks: open_splits(recipe, trained, ranks, data=data, spec=spec)


def windows_of(_: Any, trained: Any, data: str, progress: Progress) -> Rows:
    """The windows of the data by which this model can be judged."""
    spec, windows = windows_by_name(trained, data, progress.windows)
    return spec, lambda ranks: {name: window.evaluation(ranks) for name, window in windows.items()}


def report(cfg: Config, result: dict[str, Any], world: World, *, advice: list[str]) -> dict[str, float]:
    """Write and print the result of rank 0; the last line is one JSON object, and ``advice`` has the next commands."""
    if not world.is_main:
        return {}
    with g_pathmgr.open(f"{cfg.run}/evaluation.json", "w") as stream:
        json.dump(result, stream, indent=1)
    for feature, lost in result.get("ablation", {}).items():
        changes = ", ".join(f"{name} {-value:+.5f}" for name, value in lost.items())
        print(f"without {feature}: {changes}", file=sys.stderr)
    final = prefixed(f"{cfg.split}/", result["metrics"]) | {"steps": result["step"]}
    name = main_metric(final, f"{cfg.split}/")
    say_closing(
        reached=f"{cfg.split}/{name} {final[f'{cfg.split}/{name}']:.4f} at step {result['step']:,}",
        wrote=[path for path in (f"{cfg.run}/evaluation.json", cfg.plot) if path],
        next=[*advice, commands.show(cfg.run)],
    )
    print(json.dumps(final), flush=True)
    return final


if __name__ == "__main__":
    run(main, COMMAND_LINE)
