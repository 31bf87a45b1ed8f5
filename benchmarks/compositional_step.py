"""Step time of a DLRM with compositional tables relative to the same DLRM with plain tables (goals: <= 1.15, path 1.5).

    python benchmarks/compositional_step.py                                                   # one process
    OMP_NUM_THREADS=1 torchrun --standalone --nproc_per_node 2 benchmarks/compositional_step.py
    python benchmarks/compositional_step.py --shapes rm --ways mult path --hidden 16
    python benchmarks/compositional_step.py --shapes kaggle --ways mult tensor_train --rank 8

All contenders get the same batches of ids and take turns. The ratio of a round divides the contenders' median step
times, and the reported ratio is the median over rounds. A plain table has the same dim and 4 times the rows of the
compositional one, and reads one row per id where the compositional table reads two. "plain, equal lookups" gets twice
the ids and so reads as many rows as the compositional tables. mult, add, concat and path are of quotient and remainder;
half of the rows of hot_cold and hot_hash are for frequent ids; hashes_add and hashes_concat read two and four rows. A
tensor train has three partitions. The shape "kaggle" has the tables of Criteo Kaggle, capped at 100,000 rows; "rm" has
32 tables with 20 ids per bag.
"""

from __future__ import annotations

import logging
import statistics
import time
import warnings
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice

import torch
import tyro
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.models.dlrm import DLRM
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrm_torchrec.datasets.batch import Batch
from dlrm_torchrec.datasets.synthetic.clicks import SyntheticStream
from dlrm_torchrec.embeddings.config import TablesConfig
from dlrm_torchrec.embeddings.initialize import initialize_tables
from dlrm_torchrec.embeddings.tables import build_tables
from dlrm_torchrec.schema import DatasetSpec, DenseFeature, SparseFeature
from dlrm_torchrec.sharding.cluster.topology import live_topology
from dlrm_torchrec.sharding.config import ShardingConfig, ShardingKind
from dlrm_torchrec.sharding.plan import make_plan
from dlrm_torchrec.train.config import OptimizerConfig, OptimizerKind, Speed
from dlrm_torchrec.train.optimizers import build_optimizer, optimize_tables_in_backward
from dlrm_torchrec.train.task import BinaryRankingTask
from dlrm_torchrec.train.world import World, join_world

# rows of Criteo Kaggle's 26 columns, capped at 100,000
KAGGLE_ROWS = [1460, 583, 100000, 100000, 305, 24, 12517, 633, 3, 93145, 5683, 100000, 3194]
KAGGLE_ROWS += [27, 14992, 100000, 10, 5652, 2173, 4, 100000, 18, 15, 100000, 105, 100000]

EQUAL_LOOKUPS = "plain, equal lookups"
WAYS = {
    "mult": TablesConfig(kind="quotient_remainder", operation="mult"),
    "add": TablesConfig(kind="quotient_remainder", operation="add"),
    "concat": TablesConfig(kind="quotient_remainder", operation="concat"),
    "path": TablesConfig(kind="quotient_remainder", operation="path"),
    "hot_cold": TablesConfig(kind="hot_cold", hot=0.5),
    "hot_hash": TablesConfig(kind="hot_cold", hot=0.5, tail="hash"),
    "hashes_add": TablesConfig(kind="hashes", operation="add"),
    "hashes_concat": TablesConfig(kind="hashes", operation="concat", partitions=4),
    "tensor_train": TablesConfig(kind="mixed_radix", operation="tensor_train", partitions=3),
}


@dataclass(frozen=True, kw_only=True)
class Shape:
    rows: list[int]
    dim: int
    lookups: int  # ids per bag; if it is more than one, the mean
    bottom: list[int]
    top: list[int]

    def spec(self) -> DatasetSpec:
        many = self.lookups > 1
        return DatasetSpec(
            name="benchmark",
            label="click",
            dense=tuple(DenseFeature(name=f"dense_{i}") for i in range(13)),
            sparse=tuple(
                SparseFeature(name=f"f{i}", rows=rows, encoding="vocab", multi_hot=many, pooling_factor=self.lookups)
                for i, rows in enumerate(self.rows)
            ),
        )


SHAPES = {
    "kaggle": Shape(rows=KAGGLE_ROWS, dim=16, lookups=1, bottom=[512, 256, 64, 16], top=[512, 256, 1]),
    "rm": Shape(rows=[200_000] * 32, dim=64, lookups=20, bottom=[256, 128, 64], top=[128, 64, 1]),
}


def doubled(ids: KeyedJaggedTensor, rows: list[int]) -> KeyedJaggedTensor:
    """Every id, followed by another id of the same table."""
    lengths = ids.lengths().view(len(rows), -1).sum(1)
    size = torch.repeat_interleave(torch.tensor(rows), lengths.cpu()).to(ids.device())
    values = torch.stack([ids.values(), (ids.values() + size // 2) % size], dim=1).view(-1)
    return KeyedJaggedTensor(keys=ids.keys(), values=values, lengths=ids.lengths() * 2)


class Contender:
    """A sharded model with its optimizers."""

    def __init__(
        self,
        shape: Shape,
        config: TablesConfig,
        *,
        kind: OptimizerKind,
        sharding: ShardingConfig,
        speed: Speed,
        world: World,
    ) -> None:
        spec = shape.spec()
        tables = build_tables(spec.tables(dim=shape.dim), config, world.device)
        dlrm = DLRM(tables, len(spec.dense), shape.bottom, shape.top, dense_device=world.device)
        model = BinaryRankingTask(dlrm, world.size)
        sparse, dense = OptimizerConfig(kind=kind, lr=0.01), OptimizerConfig(kind="sgd", lr=0.01)
        optimize_tables_in_backward(tables, sparse)
        topology = live_topology(world.device, world_size=world.size, local_size=world.local_size)
        plan = make_plan(
            model, tables, topology, sharding, speed=speed, batch_size=2048, spec=spec, group=world.control
        )
        self.model = DistributedModelParallel(
            model, device=world.device, plan=plan, sharders=plan.sharders, init_data_parallel=world.needs_ddp
        )
        initialize_tables(self.model, seed=0)
        self.optimizer = build_optimizer(self.model, sparse, dense)

    def run(self, batches: list[Batch]) -> float:
        """The median milliseconds of a step over ``batches``."""
        milliseconds = []
        for batch in batches:
            start = time.perf_counter()
            self.optimizer.zero_grad()
            loss, _ = self.model(batch)
            loss.backward()
            self.optimizer.step()
            loss.item()  # waits for the GPU
            milliseconds.append(1e3 * (time.perf_counter() - start))
        return statistics.median(milliseconds)


def compare(
    name: str,
    configs: dict[str, TablesConfig],
    *,
    kind: OptimizerKind,
    sharding: ShardingConfig,
    speed: Speed,
    world: World,
    rounds: int,
) -> None:
    shape = SHAPES[name]
    stream = SyntheticStream(
        shape.spec(), num_rows=8 * 2048, global_batch_size=2048, rank=world.rank, world_size=world.size
    )
    batches = [batch.to(world.device) for batch in islice(stream.batches(), 8)]
    build = partial(Contender, shape, kind=kind, sharding=sharding, speed=speed, world=world)
    contenders = {title: build(config) for title, config in configs.items()}
    twice = [replace(batch, sparse_features=doubled(batch.sparse_features, shape.rows)) for batch in batches]
    medians: dict[str, list[float]] = {title: [] for title in contenders}
    for number in range(-1, rounds):  # the first round warms up
        for title in contenders if number % 2 else reversed(contenders):
            milliseconds = contenders[title].run(twice if title == EQUAL_LOOKUPS else batches)
            if number >= 0:
                medians[title].append(milliseconds)
    if world.rank == 0:
        print(f"\n{name}-like, {kind}, {sharding.kind}, {world.size} ranks, batch 2048, {rounds} rounds of 8 steps")
        for title, values in medians.items():
            ratios = [ours / plain for ours, plain in zip(values, medians["plain"], strict=True)]
            print(
                f"  {title:20s} {statistics.median(values):7.1f} ms  {statistics.median(ratios):5.2f} of plain "
                f"({min(ratios):.2f} to {max(ratios):.2f})",
                flush=True,
            )


def main(
    *,
    shapes: tuple[str, ...] = ("kaggle", "rm"),
    ways: tuple[str, ...] = ("mult", "add", "concat", "path", "hot_cold", "hot_hash", "hashes_add", "hashes_concat"),
    optimizers: tuple[OptimizerKind, ...] = ("sgd", "rowwise_adagrad"),
    sharding: ShardingKind = "table_wise",
    speed: Speed = ("sorted",),
    collisions: int = 4,
    hidden: int = 16,
    rank: int = 4,
    rounds: int = 7,
) -> None:
    """Prints one table per shape and optimizer; ``speed`` is that of the plain tables."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    configs = {"plain": TablesConfig(), EQUAL_LOOKUPS: TablesConfig()} | {
        way: replace(WAYS[way], collisions=collisions, hidden=hidden, rank=rank) for way in ways
    }
    with join_world(seed=0) as world:
        for name in shapes:
            for kind in optimizers:
                compare(
                    name,
                    configs,
                    kind=kind,
                    sharding=ShardingConfig(kind=sharding),
                    speed=speed,
                    world=world,
                    rounds=rounds,
                )


if __name__ == "__main__":
    tyro.cli(main)
