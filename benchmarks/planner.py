"""Seconds of a planner dry run of MLPerf's DLRM-DCNv2 on 16 H100s, compared to TorchRec's own planner.

    python benchmarks/planner.py

Both plan in this process, in turns, after imports. Our time covers everything that recipes/plan_sharding.py does
between reading its arguments and printing: the recipe's model on meta, the plan, and its estimates. TorchRec's time
covers only its planner and sharder, for the same topology, tables and pooling factors, on a model that is already
built. The second line compares the slowest ranks of the two plans by the same estimates. The next lines are plans of
many tables; TorchRec's planner is beside those of at most ``--beside`` tables, because it takes minutes for more. The
last line is MLPerf's plan on more ranks.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable
from random import Random
from typing import Any, NamedTuple

import torch
import tyro
from torch import nn
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.planner import EmbeddingShardingPlanner
from torchrec.distributed.planner.storage_reservations import HeuristicalStorageReservation
from torchrec.distributed.planner.types import ParameterConstraints, Stats

from dlrm_torchrec.embeddings.tables import Tables, build_tables, physical_configs
from dlrm_torchrec.recipe import load_training_recipe
from dlrm_torchrec.schema import DatasetSpec, SparseFeature
from dlrm_torchrec.sharding.cluster.topology import Cluster, parse_cluster
from dlrm_torchrec.sharding.config import ShardingConfig
from dlrm_torchrec.sharding.dry_run import DryRun
from dlrm_torchrec.sharding.estimate.estimate import Estimate
from dlrm_torchrec.sharding.estimate.planner_stats import EstimateStats
from dlrm_torchrec.sharding.plan import make_plan
from dlrm_torchrec.train.config import OptimizerConfig
from dlrm_torchrec.train.optimizers import optimize_tables_in_backward


class Planned(NamedTuple):
    """What both planners plan."""

    model: nn.Module
    tables: Tables
    cluster: Cluster
    batch_size: int  # rows per rank
    pooling: dict[str, float]  # ids per bag, by feature


def seconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def torchrec_alone(planned: Planned, *stats: Stats) -> None:
    """Plan the same tables with TorchRec's planner and sharder."""
    EmbeddingShardingPlanner(
        topology=planned.cluster.topology(),
        batch_size=planned.batch_size,
        constraints={
            table.name: ParameterConstraints(
                pooling_factors=[planned.pooling[name] for name in table.feature_names],
                compute_kernels=["fused", "dense"],
            )
            for table in physical_configs(planned.tables)
        },
        storage_reservation=HeuristicalStorageReservation(percentage=0.15, dense_tensor_estimate=10**8),
        stats=list(stats),
    ).plan(planned.model, [EmbeddingBagCollectionSharder()])


def slowest_ms(estimate: Estimate | None) -> float:
    assert estimate is not None
    return sum(estimate.rank_milliseconds()[estimate.critical_rank()].values())


def mlperf(topology: str, rounds: int) -> None:
    recipe, cluster = load_training_recipe("train_dcnv2"), parse_cluster(topology)
    cfg = recipe.PRESETS["mlperf"]
    dry_run = DryRun(recipe.build, cfg.shape, {})
    model, tables = recipe.build(cfg, cfg.shape, cluster.world_size, torch.device("cpu"))
    pooling = {feature.name: feature.pooling_factor for feature in cfg.shape.sparse}
    planned = Planned(model, tables, cluster, cfg.batch_size // cluster.world_size, pooling)
    ours, theirs = [], []
    for _ in range(rounds):
        ours.append(seconds(lambda: dry_run(cfg, cluster)))
        theirs.append(seconds(lambda: torchrec_alone(planned)))
    estimate, stats = dry_run(cfg, cluster), EstimateStats(topology)
    torchrec_alone(planned, stats)
    print(
        f"{topology}, {rounds} rounds, medians: dry run {statistics.median(ours):.2f} s ({min(ours):.2f} to "
        f"{max(ours):.2f}), TorchRec's planner {statistics.median(theirs):.2f} s: "
        f"{statistics.median(ours) / statistics.median(theirs):.2f} of its time"
    )
    print(
        f"fullest rank {max(estimate.rank_bytes('hbm')) / 1e9:.2f} GB, slowest {slowest_ms(estimate):.2f} ms, with "
        f"TorchRec's plan {slowest_ms(stats.estimate):.2f} ms"
    )


def many(count: int, topology: str, *, beside: bool) -> None:
    """Plan ``count`` tables of 10^2 to 10^7 rows x 128 with 1 to 50 ids in a bag."""
    random = Random(0)
    sparse = [
        SparseFeature(name=f"f{i}", rows=int(10 ** random.uniform(2, 7)), pooling_factor=random.uniform(1, 50))
        for i in range(count)
    ]
    spec, cluster = DatasetSpec(name="many", label="y", dense=(), sparse=tuple(sparse)), parse_cluster(topology)
    tables = build_tables(spec.tables(dim=128))
    optimize_tables_in_backward(tables, OptimizerConfig(kind="rowwise_adagrad", lr=0.1))
    model, batch_size, stats = nn.Sequential(tables), 4096, [EstimateStats(topology), EstimateStats(topology)]
    pooling = {feature.name: feature.pooling_factor for feature in sparse}
    planned = Planned(model, tables, cluster, batch_size, pooling)
    ours = seconds(
        lambda: make_plan(
            model,
            tables,
            cluster.topology(),
            ShardingConfig(),
            batch_size=batch_size,
            spec=spec,
            stats=stats[0],
        )
    )
    line = f"{count} tables on {topology}: {ours:.1f} s, slowest rank {slowest_ms(stats[0].estimate):.2f} ms"
    if beside:
        theirs = seconds(lambda: torchrec_alone(planned, stats[1]))
        line += f"; TorchRec's planner {theirs:.1f} s, {slowest_ms(stats[1].estimate):.2f} ms"
    print(line, flush=True)


def main(rounds: int = 5, tables: tuple[int, ...] = (50, 100, 1000), beside: int = 100, ranks: str = "128x8") -> None:
    logging.disable(logging.WARNING)
    mlperf("2x8:h100", rounds)
    for count in tables:
        many(count, "2x8:h100", beside=count <= beside)
    recipe, cluster = load_training_recipe("train_dcnv2"), parse_cluster(f"{ranks}:h100")
    cfg = recipe.PRESETS["mlperf"]
    took = seconds(lambda: DryRun(recipe.build, cfg.shape, {})(cfg, cluster))
    print(f"MLPerf's tables on {cluster.world_size:,} ranks: {took:.1f} s")


if __name__ == "__main__":
    tyro.cli(main)
