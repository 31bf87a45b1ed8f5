"""Draws the personalised all-to-all of one step: the bytes of ids and of vectors that each rank sends to each rank.

    OMP_NUM_THREADS=1 torchrun --standalone --nproc_per_node 4 benchmarks/all_to_all.py --output all_to_all.svg

Every table is on a single rank. A rank sends the ids of its rows to the ranks with their tables, and gets back one
vector per row and feature, so every pair of ranks exchanges different data. The bytes are counted from the sizes that
all_to_all receives; the diagonal stays on its rank. The output compares them with B F d 4 (W - 1) / W^2, the bytes of
vectors that a rank sends if W ranks hold equal numbers of F features of dim d and the global batch has B rows.
"""

from __future__ import annotations

import logging
import warnings
from itertools import islice
from typing import Any

import matplotlib as mpl
import numpy as np
import torch.distributed as dist
import tyro
from matplotlib import pyplot as plt
from torch import nn
from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection
from torchrec.distributed.model_parallel import DistributedModelParallel

from dlrm_torchrec.datasets.synthetic.clicks import SyntheticStream
from dlrm_torchrec.datasets.synthetic.specs import demo_spec
from dlrm_torchrec.embeddings.tables import build_tables
from dlrm_torchrec.sharding.cluster.topology import live_topology
from dlrm_torchrec.sharding.config import ShardingConfig
from dlrm_torchrec.sharding.plan import make_plan
from dlrm_torchrec.sharding.plan_description import describe_plan
from dlrm_torchrec.train.config import OptimizerConfig
from dlrm_torchrec.train.optimizers import optimize_tables_in_backward
from dlrm_torchrec.train.timing.wire import Wire
from dlrm_torchrec.train.world import World, join_world

DIM = 16


def sent(batch_size: int, world: World) -> dict[str, list[int]]:
    """Bytes from this rank to every rank, including itself, in one forward pass of the demo's tables."""
    spec = demo_spec()
    tables = build_tables(spec.tables(dim=DIM))
    optimize_tables_in_backward(tables, OptimizerConfig(kind="sgd", lr=0.1))
    topology = live_topology(world.device, world_size=world.size, local_size=world.local_size)
    whole = ShardingConfig(kind="table_wise")
    share = batch_size // world.size  # of a rank
    plan = make_plan(nn.Sequential(tables), tables, topology, whole, batch_size=share, spec=spec, group=world.control)
    if world.is_main:
        print(describe_plan(plan, tables, world.size))
    model = DistributedModelParallel(
        nn.Sequential(tables), device=world.device, plan=plan, sharders=plan.sharders, init_data_parallel=False
    )
    stream = SyntheticStream(
        spec, num_rows=batch_size, global_batch_size=batch_size, rank=world.rank, world_size=world.size
    )
    (batch,) = islice(stream.batches(), 1)
    (sharded,) = (module for module in model.modules() if isinstance(module, ShardedEmbeddingBagCollection))
    context = sharded.create_context()
    with Wire() as ids:
        arrived = sharded.input_dist(context, batch.to(world.device).sparse_features).wait().wait()
    with Wire() as vectors:
        sharded.compute_and_output_dist(context, arrived).wait()
    return {name: np.sum(wire.pieces, axis=0).tolist() for name, wire in (("ids", ids), ("vectors", vectors))}


def draw(traffic: dict[str, Any], path: str) -> None:
    """Draws one heat map per (W, W) matrix of bytes, with senders as rows and receivers as columns."""
    mpl.rcParams["svg.hashsalt"] = "all-to-all"  # so that equal bytes give an equal file
    figure, axes = plt.subplots(1, len(traffic), figsize=(4.6 * len(traffic), 4.2), layout="constrained")
    for axis, (name, matrix) in zip(axes, traffic.items(), strict=True):
        kib = np.array(matrix) / 1024
        image = axis.imshow(kib, cmap="Blues", vmin=0)
        for sender, row in enumerate(kib):
            for receiver, value in enumerate(row):
                color = "white" if value > 0.6 * kib.max() else "black"
                axis.text(receiver, sender, f"{value:.0f}", ha="center", va="center", color=color)
        axis.set(title=f"{name}, KiB", xlabel="to rank", ylabel="from rank")
        axis.set_xticks(range(len(kib)))
        axis.set_yticks(range(len(kib)))
        figure.colorbar(image, ax=axis, shrink=0.8)
    figure.savefig(path, metadata={"Date": None})


def main(output: str = "all_to_all.svg", batch_size: int = 4096) -> None:
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    with join_world(seed=0) as world:
        ranks: list[Any] = [None] * world.size
        dist.all_gather_object(ranks, sent(batch_size, world), group=world.control)
        if world.is_main:
            traffic = {name: [rank[name] for rank in ranks] for name in ranks[0]}
            draw(traffic, output)
            for name, matrix in traffic.items():
                away = np.sum(matrix, axis=1) - np.diag(matrix)
                print(
                    f"{name}: the ranks send {', '.join(f'{each:,}' for each in away)} bytes; mean {away.mean():,.0f}"
                )
            num_features = len(demo_spec().sparse)
            equal = batch_size * num_features * DIM * 4 * (world.size - 1) / world.size**2
            print(f"B F d 4 (W - 1) / W^2 = {equal:,.0f} bytes; drawn in {output}")


if __name__ == "__main__":
    tyro.cli(main)
