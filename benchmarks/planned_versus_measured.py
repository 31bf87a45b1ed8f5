"""Compares planned with measured milliseconds of three plans of one model on two CPU ranks: is their order the same?

    python benchmarks/planned_versus_measured.py

Trains recipes/train_dlrm.py with larger tables, which are sharded table-wise, row-wise or replicated, in turns. The
benchmark measures the parts of a step that the planner estimates, on the slowest rank, and whole steps. Whole steps are
those of the pipeline, as recipes train, and those whose parts are timed. The estimates are for the registered cpu
machine, and for the same machine with bandwidths corrected by the measurements of one of the three plans.
"""

from __future__ import annotations

import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import tyro

from dlrm_torchrec.recipe import TrainingRecipe, load_training_recipe
from dlrm_torchrec.schema import DatasetSpec, DenseFeature, SparseFeature
from dlrm_torchrec.sharding.cluster.topology import Cluster, parse_cluster
from dlrm_torchrec.sharding.config import ShardingConfig, ShardingKind
from dlrm_torchrec.sharding.dry_run import DryRun
from dlrm_torchrec.sharding.estimate.correction import correct, tables_milliseconds
from dlrm_torchrec.sharding.estimate.estimate import Estimate
from dlrm_torchrec.sharding.measured import check_same_plan, read_measured

ROOT = Path(__file__).parent.parent
TOPOLOGY = "1x2:cpu"
KINDS: tuple[ShardingKind, ...] = ("table_wise", "row_wise", "data_parallel")
BATCH = 8192  # rows of both ranks together
WARM_UP, PIPELINED, TIMED = 10, 30, 50  # the last step of each part of a run


def config(recipe: TrainingRecipe, kind: ShardingKind, *, tables: int, rows: int, dim: int, lookups: int) -> Any:
    """The config of the recipe's demo with ``tables`` equal tables, a sharding of ``kind`` and one timed stretch."""
    shape = DatasetSpec(
        name="planned_versus_measured",
        label="click",
        dense=tuple(DenseFeature(name=f"dense_{i}") for i in range(13)),
        sparse=tuple(
            SparseFeature(name=f"list_{i}", rows=rows, multi_hot=True, pooling_factor=lookups) for i in range(tables)
        ),
    )
    demo = recipe.Config()
    return replace(
        demo,
        shape=shape,
        batch_size=BATCH,
        rows=TIMED * BATCH,
        bottom=(64, dim),
        eval_every=0,
        sharding=ShardingConfig(kind=kind),
        log=replace(demo.log, every=WARM_UP, timed=(PIPELINED + 1, TIMED)),
    )


def train_all(folder: Path, rounds: int, **shape: int) -> None:
    """Run every plan ``rounds`` times, in turns, as one of two ranks."""
    recipe = load_training_recipe("train_dlrm")
    for number in range(rounds):
        for kind in KINDS if number % 2 else reversed(KINDS):
            cfg = config(recipe, kind, **shape)
            cfg = replace(cfg, sharding=ShardingConfig(plan=f"{folder}/{kind}.json"), run_dir=f"{folder}/{number}")
            recipe.main(kind, cfg)


def pipelined_ms(run: Path) -> float:
    """Milliseconds of a step of the pipeline, from the difference between two records of a run's speed so far."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    seconds_per_sample = {record["step"]: 1 / record["samples_per_s"] for record in records if "train/loss" in record}
    elapsed = [step * seconds_per_sample[step] for step in (WARM_UP, PIPELINED)]
    return 1e3 * BATCH * (elapsed[1] - elapsed[0]) / (PIPELINED - WARM_UP)


def slowest_ms(ranks: list[dict[str, float]]) -> float:
    return max(sum(parts.values()) for parts in ranks)


def report(dry_run: Callable[[ShardingKind, Cluster], Estimate], folder: Path, rounds: int) -> None:
    cluster = parse_cluster(TOPOLOGY)
    planned = {kind: dry_run(kind, cluster) for kind in KINDS}
    runs = {kind: [folder / str(number) / kind for number in range(rounds)] for kind in KINDS}
    timed = {kind: [read_measured(f"{run}/step_times.json") for run in runs[kind]] for kind in KINDS}
    found: dict[str, dict[ShardingKind, list[float]]] = {"tables, timed": {}, "step, timed": {}, "step, pipelined": {}}
    columns = {f"{TOPOLOGY}": {kind: slowest_ms(planned[kind].rank_milliseconds()) for kind in KINDS}}
    for kind in KINDS:
        for each in timed[kind]:
            check_same_plan(each, planned[kind], cluster)
        tables = [[tables_milliseconds(parts) for parts in each.milliseconds] for each in timed[kind]]
        found["tables, timed"][kind] = [slowest_ms(ranks) for ranks in tables]
        found["step, timed"][kind] = [max(parts["step"] for parts in each.milliseconds) for each in timed[kind]]
        found["step, pipelined"][kind] = [pipelined_ms(run) for run in runs[kind]]
        ranks = zip(*(each.milliseconds for each in timed[kind]), strict=True)
        medians = [{part: statistics.median(each[part] for each in rank) for part in rank[0]} for rank in ranks]
        corrected = correct(planned[kind], cluster, medians).apply(cluster, kind)
        columns[f"by {kind}"] = {other: slowest_ms(dry_run(other, corrected).rank_milliseconds()) for other in KINDS}
    columns |= {name: {kind: statistics.median(ms[kind]) for kind in KINDS} for name, ms in found.items()}
    print(f"\n{rounds} rounds of {TIMED - PIPELINED} timed and {PIPELINED - WARM_UP} pipelined steps, medians, in ms")
    print(f"{'':<14}  {'planned for':>16}  {'corrected':>16}  {'':>16}  {'':>16}  {'measured':>16}")
    print("  ".join([f"{'plan':<14}", *(f"{name:>16}" for name in columns)]))
    for kind in KINDS:
        print("  ".join([f"{kind:<14}", *(f"{column[kind]:>16.2f}" for column in columns.values())]))
    for kind in KINDS[1:]:
        ratios = [f"{name} {column[kind] / column[KINDS[0]]:.2f}" for name, column in columns.items()]
        print(f"{kind} over {KINDS[0]}: {'; '.join(ratios)}")
    expected = fastest_first(columns[TOPOLOGY])
    print(f"planned, fastest first: {', '.join(expected)}")
    for name, ms in found.items():
        same = [fastest_first({kind: ms[kind][number] for kind in KINDS}) == expected for number in range(rounds)]
        order = "the same order" if fastest_first(columns[name]) == expected else "another order"
        print(f"{name}: {order} by medians, the same in {sum(same)} of {rounds} rounds")


def fastest_first(milliseconds: Mapping[ShardingKind, float]) -> list[ShardingKind]:
    return sorted(milliseconds, key=milliseconds.__getitem__)


def main(
    *, tables: int = 8, rows: int = 40_000, dim: int = 64, lookups: int = 10, rounds: int = 5, ranks_of: str = ""
) -> None:
    """Plans, trains and compares; only the processes that this one starts get ``ranks_of``."""
    logging.disable(logging.WARNING)
    shape = {"tables": tables, "rows": rows, "dim": dim, "lookups": lookups}
    if ranks_of:
        train_all(Path(ranks_of), rounds, **shape)
        return
    recipe = load_training_recipe("train_dlrm")

    def dry_run(kind: ShardingKind, cluster: Cluster) -> Estimate:
        cfg = config(recipe, kind, **shape)
        return DryRun(recipe.build, cfg.shape, {})(cfg, cluster, TOPOLOGY)

    with tempfile.TemporaryDirectory() as folder:
        for kind in KINDS:
            plan = [dry_run(kind, parse_cluster(TOPOLOGY)).to_json()]
            Path(folder, f"{kind}.json").write_text(json.dumps(plan))
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", __file__]
        command += [f"--{name}={value}" for name, value in {**shape, "rounds": rounds, "ranks-of": folder}.items()]
        done = subprocess.run(command, env={"OMP_NUM_THREADS": "1", **os.environ}, capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr)
        report(dry_run, Path(folder), rounds)


if __name__ == "__main__":
    tyro.cli(main)
