"""Seconds of a planner dry run of MLPerf's DLRM-DCNv2 on 16 H100s, compared to TorchRec's own planner.

    python benchmarks/planner.py

Both plan in this process, in turns, after imports. Our time covers everything that recipes/plan_sharding.py does
between reading its arguments and printing: the recipe's model on meta, the plan, and its estimates. TorchRec's time
covers only its planner and sharder, for the same topology, tables and pooling factors, on a model that is already
built. The last line compares the slowest ranks of the two plans by the same estimates.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import tyro
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.planner import EmbeddingShardingPlanner
from torchrec.distributed.planner.storage_reservations import HeuristicalStorageReservation
from torchrec.distributed.planner.types import ParameterConstraints, Stats

from dlrm_torchrec.embeddings.tables import physical_configs
from dlrm_torchrec.recipe import load_training_recipe
from dlrm_torchrec.sharding.cluster.topology import parse_cluster
from dlrm_torchrec.sharding.dry_run import DryRun
from dlrm_torchrec.sharding.estimate.planner_stats import EstimateStats

ROOT = Path(__file__).parent.parent
TOPOLOGY = "2x8:h100"


def seconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main(rounds: int = 5) -> None:
    logging.disable(logging.WARNING)
    recipe, cluster = load_training_recipe("train_dcnv2"), parse_cluster(TOPOLOGY)
    cfg = recipe.PRESETS["mlperf"]
    dry_run = DryRun(recipe.build, cfg.shape, {})
    model, tables = recipe.build(cfg, cfg.shape, cluster.world_size, torch.device("cpu"))
    pooling = {feature.name: feature.pooling_factor for feature in cfg.shape.sparse}

    def torchrec_alone(*stats: Stats) -> None:
        EmbeddingShardingPlanner(
            topology=cluster.topology(),
            batch_size=cfg.batch_size // cluster.world_size,
            constraints={
                table.name: ParameterConstraints(
                    pooling_factors=[pooling[name] for name in table.feature_names], compute_kernels=["fused", "dense"]
                )
                for table in physical_configs(tables)
            },
            storage_reservation=HeuristicalStorageReservation(percentage=0.15, dense_tensor_estimate=10**8),
            stats=list(stats),
        ).plan(model, [EmbeddingBagCollectionSharder()])

    ours, theirs = [], []
    for _ in range(rounds):
        ours.append(seconds(lambda: dry_run(cfg, cluster)))
        theirs.append(seconds(torchrec_alone))
    estimate, stats = dry_run(cfg, cluster), EstimateStats(TOPOLOGY)
    torchrec_alone(stats)
    assert stats.estimate is not None
    slowest, theirs_slowest = (
        sum(each.rank_milliseconds()[each.critical_rank()].values()) for each in (estimate, stats.estimate)
    )
    print(
        f"{TOPOLOGY}, {rounds} rounds, medians: dry run {statistics.median(ours):.2f} s ({min(ours):.2f} to "
        f"{max(ours):.2f}), TorchRec's planner {statistics.median(theirs):.2f} s: "
        f"{statistics.median(ours) / statistics.median(theirs):.2f} of its time"
    )
    print(
        f"fullest rank {max(estimate.rank_bytes('hbm')) / 1e9:.2f} GB, slowest {slowest:.2f} ms, with TorchRec's plan "
        f"{theirs_slowest:.2f} ms"
    )


if __name__ == "__main__":
    tyro.cli(main)
