"""Tables of single ids and pooled ones in one model: planned, initialised, pipelined, saved and resharded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

import pytest
import torch
from torch import nn
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist
from torchrec.distributed.train_pipeline.runtime_forwards import PipelinedForward
from torchrec.modules.embedding_configs import EmbeddingConfig
from torchrec.modules.embedding_modules import get_embedding_names_by_table
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrm_torchrec.datasets.synthetic.clicks import SyntheticStream
from dlrm_torchrec.datasets.synthetic.specs import demo_spec
from dlrm_torchrec.embeddings.compositional.operations import Add, Mult, Operation, Path
from dlrm_torchrec.embeddings.compositional.partitions.arithmetic import ChineseRemainder, QuotientRemainder
from dlrm_torchrec.embeddings.compositional.partitions.base import Partition
from dlrm_torchrec.embeddings.compositional.sequences import CompositionalEmbeddingCollection
from dlrm_torchrec.embeddings.compositional.table_configs import CompositionalEmbeddingConfig
from dlrm_torchrec.embeddings.config import TablesConfig
from dlrm_torchrec.embeddings.initialize import initialize_tables
from dlrm_torchrec.embeddings.tables import build_tables
from dlrm_torchrec.schema import Table
from dlrm_torchrec.sharding.cluster.topology import live_topology
from dlrm_torchrec.sharding.config import ShardingConfig, ShardingKind
from dlrm_torchrec.sharding.plan import make_plan
from dlrm_torchrec.sharding.plan_description import describe_plan
from dlrm_torchrec.train.checkpoints.checkpoint import Checkpoints
from dlrm_torchrec.train.checkpoints.progress import Progress
from dlrm_torchrec.train.checkpoints.tables import saved_tables
from dlrm_torchrec.train.config import CheckpointConfig, OptimizerConfig, OptimizerKind
from dlrm_torchrec.train.optimizers import build_optimizer, optimize_tables_in_backward
from dlrm_torchrec.train.pipeline import train_pipeline
from dlrm_torchrec.train.task import BinaryRankingTask
from dlrm_torchrec.train.timing.timed_step import TimedStep
from dlrm_torchrec.train.world import World, join_world
from tests.distributed import run_ranks

DIM, BATCH, STEPS = 16, 64, 8
DENSE = OptimizerConfig(kind="sgd", lr=0.1)
COMPOSED: dict[str, tuple[Partition, Operation]] = {
    "t_list_1": (QuotientRemainder(1_000, 4), Mult()),
    "t_list_0": (ChineseRemainder(200, (14, 15)), Add()),
    "t_id_7": (QuotientRemainder(20_000, 7), Path(hidden=8)),
}
SEQUENCES = [*COMPOSED, "t_id_4", "t_id_3"]
STORED = {"t_list_1": (254, 16), "t_list_0": (29, 16), "t_id_7": (2858 + 7 * 18, 16)}
Kinds = dict[str, ShardingKind]
BEFORE: Kinds = {
    "t_list_1": "column_wise",
    "t_list_0": "row_wise",
    "t_id_7": "row_wise",
    "t_id_4": "data_parallel",
    "t_id_5": "column_wise",
}
AFTER: Kinds = {"t_list_1": "row_wise", "t_list_0": "data_parallel", "t_id_4": "row_wise", "t_id_5": "row_wise"}


def config_of(table: Table) -> EmbeddingConfig:
    shared: dict[str, Any] = {
        "name": table.name,
        "num_embeddings": table.rows,
        "embedding_dim": table.dim,
        "feature_names": list(table.features),
    }
    if table.name not in COMPOSED:
        return EmbeddingConfig(**shared)
    partition, operation = COMPOSED[table.name]
    return CompositionalEmbeddingConfig(**shared, partition=partition, operation=operation)


class Model(nn.Module):
    """Sums of what a layer makes of each id's vector, beside sums of vectors."""

    def __init__(self, sequences: CompositionalEmbeddingCollection, bags: Any, num_dense: int) -> None:
        super().__init__()
        self.sequences, self.bags = sequences, bags
        self.features = [feature for config in sequences.embedding_configs() for feature in config.feature_names]
        self.keys = [key for keys in get_embedding_names_by_table(bags.embedding_bag_configs()) for key in keys]
        self.each = nn.Linear(DIM, DIM)
        self.top = nn.Linear((len(self.features) + len(self.keys)) * DIM + num_dense, 1)

    def forward(self, dense: torch.Tensor, sparse: KeyedJaggedTensor) -> torch.Tensor:
        jagged, pooled = self.sequences(sparse), self.bags(sparse)
        sums = []
        for feature in self.features:
            vectors = torch.tanh(self.each(jagged[feature].values()))
            sums.append(
                torch.segment_reduce(vectors, "sum", lengths=jagged[feature].lengths().long(), axis=0, unsafe=True)
            )
        return self.top(torch.cat([dense, *sums, *(pooled[key] for key in self.keys)], dim=1))


@dataclass
class Run:
    """A model planned and sharded as by a recipe."""

    world: World
    kinds: Kinds
    optimizer_kind: OptimizerKind = "adagrad"

    def __post_init__(self) -> None:
        spec, meta = demo_spec(), torch.device("meta")
        sparse = OptimizerConfig(kind=self.optimizer_kind, lr=0.1)
        tables = spec.tables(DIM)
        sequences = CompositionalEmbeddingCollection(
            [config_of(each) for each in tables if each.name in SEQUENCES], meta
        )
        small = TablesConfig(kind="quotient_remainder", threshold=500)
        bags = build_tables([each for each in tables if each.name not in SEQUENCES], small)
        torch.manual_seed(0)
        task = BinaryRankingTask(Model(sequences, bags, len(spec.dense)), self.world.size)
        optimize_tables_in_backward(task, sparse)
        topology = live_topology(self.world.device, world_size=self.world.size, local_size=self.world.local_size)
        sharding = ShardingConfig(kind="table_wise", tables=self.kinds)
        share = BATCH // self.world.size
        plan = make_plan(task, task, topology, sharding, batch_size=share, spec=spec, group=self.world.control)
        described = describe_plan(plan, task, self.world.size)
        assert all(table.name in described for table in tables)
        self.model = DistributedModelParallel(task, device=self.world.device, plan=plan, sharders=plan.sharders)
        initialize_tables(self.model, seed=0)
        self.optimizer = build_optimizer(self.model, sparse, DENSE)
        self.stream = SyntheticStream(
            spec, num_rows=STEPS * BATCH, global_batch_size=BATCH, rank=self.world.rank, world_size=self.world.size
        )

    def train(self, first: int, last: int) -> list[float]:
        """This rank's losses of the steps from ``first`` to ``last``, in a bare loop."""
        losses = []
        for _, batch in zip(range(first, last), self.stream.batches(first), strict=False):
            self.optimizer.zero_grad()
            loss, _ = self.model(batch)
            loss.backward()
            self.optimizer.step()
            losses.append(float(loss.detach()))
        return losses


def in_world(function: Callable[[World], list[float]]) -> list[float]:
    with join_world(seed=0) as world:
        return function(world)


def bare(world: World) -> list[float]:
    return Run(world, BEFORE if world.size > 1 else {}).train(0, STEPS)


def pipelined(world: World) -> list[float]:
    run = Run(world, BEFORE)
    pipeline = train_pipeline(run.model, run.optimizer, world)
    assert isinstance(pipeline, TrainPipelineSparseDist)
    batches = run.stream.batches()
    losses = [float(pipeline.progress(batches)[0]) for _ in range(STEPS)]
    assert len([part for part in run.model.modules() if isinstance(part.forward, PipelinedForward)]) == 2
    return losses


def timed(world: World) -> list[float]:
    """In steps that are trained part by part."""
    run = Run(world, BEFORE)
    step, batches, losses = TimedStep(run.model, run.optimizer, world), run.stream.batches(), []
    for _ in range(STEPS):
        (loss, _, _), _, milliseconds = step.run(batches)
        losses.append(float(loss))
        assert {"lookup", "output_dist_backward", "lookup_backward"} <= milliseconds.keys()
    return losses


@pytest.fixture(scope="module")
def expected() -> list[list[float]]:
    """Losses of both ranks in one bare loop."""
    losses = run_ranks(2, in_world, bare, join=False, timeout_s=60)
    assert losses[0][-1] < losses[0][0]
    return losses


@pytest.mark.parametrize("way", [pipelined, timed])
def test_pipelines_and_timers_change_no_loss(way: Callable[[World], list[float]], expected: list[list[float]]) -> None:
    assert run_ranks(2, in_world, way, join=False, timeout_s=60) == expected


def test_one_rank_begins_with_the_same_vectors_and_has_the_same_losses(expected: list[list[float]]) -> None:
    (alone,) = run_ranks(1, in_world, bare, join=False, timeout_s=60)
    assert alone == pytest.approx(means(expected), rel=1e-5)


def means(by_rank: list[list[float]]) -> list[float]:
    return [sum(losses) / len(losses) for losses in zip(*by_rank, strict=True)]


@dataclass(frozen=True)
class Part:
    """Train from the newest checkpoint, if there is one, to the step ``last``, and save."""

    folder: FilePath
    kinds: Kinds
    last: int

    def __call__(self, world: World) -> list[float]:
        run, checkpoints = Run(world, self.kinds), Checkpoints(str(self.folder), CheckpointConfig(), world)
        loaded = checkpoints.load(run.model, run.optimizer, {})
        progress = loaded or Progress(identity={}, lanes=world.size)
        losses = run.train(progress.step, self.last)
        checkpoints.finish(run.model, run.optimizer, Progress(identity={}, lanes=progress.lanes, step=self.last))
        return losses


def test_a_checkpoint_goes_from_two_ranks_to_one_and_back(tmp_path: FilePath, expected: list[list[float]]) -> None:
    found = []
    for ranks, kinds, last in ((2, BEFORE, 3), (1, AFTER, 6), (2, AFTER, STEPS)):
        found += means(run_ranks(ranks, in_world, Part(tmp_path, kinds, last), join=False, timeout_s=60))
    assert found == pytest.approx(means(expected), rel=1e-5)
    newest = max(path for path in tmp_path.iterdir() if path.is_dir())
    sizes = {table.name: (table.rows, table.dim) for table in saved_tables(str(newest))}
    assert sizes.items() >= STORED.items()
    assert {table.name for table in demo_spec().tables(DIM)} == sizes.keys()


def with_adam(world: World) -> list[float]:
    """FBGEMM has no Adam for CPU, and TorchRec has none for replicas."""
    return Run(world, {"t_list_1": "column_wise", "t_list_0": "row_wise", "t_id_3": "row_wise"}, "adam").train(0, STEPS)


def test_adam_has_the_same_losses_on_one_rank_and_on_two() -> None:
    both, alone = (run_ranks(ranks, in_world, with_adam, join=False, timeout_s=60) for ranks in (2, 1))
    assert means(both) == pytest.approx(alone[0], rel=1e-4)
