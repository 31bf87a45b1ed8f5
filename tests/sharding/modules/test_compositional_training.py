"""Compositional tables inside a DLRM: the pipeline overlaps them, and checkpoints reshard them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path as FilePath

import pytest
import torch
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist
from torchrec.distributed.train_pipeline.runtime_forwards import PipelinedForward
from torchrec.models.dlrm import DLRM
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.optim.keyed import CombinedOptimizer

from dlrm_torchrec.datasets.synthetic.clicks import SyntheticStream
from dlrm_torchrec.datasets.synthetic.specs import demo_spec
from dlrm_torchrec.embeddings.compositional.collection import CompositionalEmbeddingBagCollection
from dlrm_torchrec.embeddings.compositional.operations import Add, Concat, FeatureGeneration, Mult, Path
from dlrm_torchrec.embeddings.compositional.partitions.arithmetic import ChineseRemainder, MixedRadix, QuotientRemainder
from dlrm_torchrec.embeddings.compositional.table_configs import CompositionalEmbeddingBagConfig
from dlrm_torchrec.embeddings.initialize import initialize_tables
from dlrm_torchrec.schema import Table
from dlrm_torchrec.sharding.cluster.topology import live_topology
from dlrm_torchrec.sharding.config import ShardingConfig, ShardingKind
from dlrm_torchrec.sharding.modules.compositional import ShardedCompositionalEmbeddingBagCollection
from dlrm_torchrec.sharding.plan import make_plan
from dlrm_torchrec.train.checkpoints.checkpoint import Checkpoints
from dlrm_torchrec.train.checkpoints.progress import Progress
from dlrm_torchrec.train.config import CheckpointConfig, OptimizerConfig
from dlrm_torchrec.train.optimizers import build_optimizer, optimize_tables_in_backward
from dlrm_torchrec.train.pipeline import train_pipeline
from dlrm_torchrec.train.task import BinaryRankingTask
from dlrm_torchrec.train.world import World, join_world
from tests.distributed import run_ranks

DIM, BATCH, STEPS = 16, 64, 8
TABLES = OptimizerConfig(kind="adagrad", lr=0.1)
DENSE = OptimizerConfig(kind="sgd", lr=0.1)
COMPOSED = {
    "t_list_1": (QuotientRemainder(1_000, 4), Mult()),
    "t_list_0": (ChineseRemainder(200, (14, 15)), Add()),
    "t_id_7": (QuotientRemainder(20_000, 7), Path(hidden=8)),
    "t_id_6": (MixedRadix(2_000, (5, 8, 5, 10)), Concat()),
    "t_id_5": (QuotientRemainder(1_000, 30), FeatureGeneration()),
}
STORED = {
    "t_list_1": (254, 16),
    "t_list_0": (29, 16),
    "t_id_7": (2858 + 7 * 18, 16),
    "t_id_6": (28, 4),
    "t_id_5": (64, 16),
}
Kinds = dict[str, ShardingKind]
BEFORE: Kinds = {
    "t_list_1": "column_wise",
    "t_list_0": "row_wise",
    "t_id_7": "table_row_wise",
    "t_id_6": "table_row_wise",
    "t_id_5": "data_parallel",
    "t_id_4": "row_wise",
}
AFTER: Kinds = {
    "t_list_1": "row_wise",
    "t_list_0": "table_wise",
    "t_id_7": "data_parallel",
    "t_id_6": "data_parallel",
    "t_id_5": "row_wise",
    "t_id_4": "data_parallel",
}


def config_of(table: Table) -> EmbeddingBagConfig:
    if table.name not in COMPOSED:
        return EmbeddingBagConfig(
            name=table.name,
            num_embeddings=table.rows,
            embedding_dim=table.dim,
            feature_names=list(table.features),
        )
    partition, operation = COMPOSED[table.name]
    return CompositionalEmbeddingBagConfig(
        name=table.name,
        num_embeddings=table.rows,
        embedding_dim=table.dim,
        feature_names=list(table.features),
        partition=partition,
        operation=operation,
    )


@dataclass
class Run:
    """A DLRM over plain and compositional tables, planned and sharded as by a recipe."""

    world: World
    kinds: Kinds

    def __post_init__(self) -> None:
        spec = demo_spec()
        tables = CompositionalEmbeddingBagCollection(
            [config_of(table) for table in spec.tables(DIM)], device=torch.device("meta")
        )
        torch.manual_seed(0)
        task = BinaryRankingTask(DLRM(tables, len(spec.dense), [32, DIM], [32, 1]), self.world.size)
        optimize_tables_in_backward(tables, TABLES)
        plan = make_plan(
            task,
            tables,
            live_topology(self.world.device, world_size=self.world.size, local_size=self.world.local_size),
            ShardingConfig(kind="table_wise", tables=self.kinds),
            batch_size=BATCH // self.world.size,
            spec=spec,
            group=self.world.control,
        )
        self.model = DistributedModelParallel(task, device=self.world.device, plan=plan, sharders=plan.sharders)
        initialize_tables(self.model, seed=0)
        self.optimizer: CombinedOptimizer = build_optimizer(self.model, TABLES, DENSE)
        self.stream = SyntheticStream(
            spec,
            num_rows=STEPS * BATCH,
            global_batch_size=BATCH,
            rank=self.world.rank,
            world_size=self.world.size,
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
    return Run(world, BEFORE).train(0, STEPS)


def pipelined(world: World) -> list[float]:
    run = Run(world, BEFORE)
    pipeline = train_pipeline(run.model, run.optimizer, world)
    assert isinstance(pipeline, TrainPipelineSparseDist)
    batches = run.stream.batches()
    losses = [float(pipeline.progress(batches)[0]) for _ in range(STEPS)]
    (module,) = [part for part in run.model.modules() if isinstance(part.forward, PipelinedForward)]
    assert isinstance(module, ShardedCompositionalEmbeddingBagCollection)
    assert {placed.sharding_type for placed in module.module_sharding_plan.values()} >= {"table_wise", "row_wise"}
    return losses


@pytest.fixture(scope="module")
def expected() -> list[list[float]]:
    """Losses of both ranks in one bare loop."""
    losses = run_ranks(2, in_world, bare, join=False, timeout_s=60)
    assert losses[0][-1] < losses[0][0]
    return losses


def test_pipeline_overlaps_the_tables_and_changes_no_loss(expected: list[list[float]]) -> None:
    """With tables composed on their owner (mult, path of spread rows) and on the sender (add, concat)."""
    assert run_ranks(2, in_world, pipelined, join=False, timeout_s=60) == expected


@dataclass(frozen=True)
class Save:
    """Train ``steps`` steps and save."""

    folder: FilePath
    steps: int

    def __call__(self, world: World) -> list[float]:
        run = Run(world, BEFORE)
        losses = run.train(0, self.steps)
        progress = Progress(identity={}, lanes=world.size, step=self.steps)
        Checkpoints(str(self.folder), CheckpointConfig(), world).finish(run.model, run.optimizer, progress)
        for table, shape in STORED.items():
            name = f"model.sparse_arch.embedding_bag_collection.embedding_bags.{table}.weight"
            assert tuple(run.model.state_dict()[name].size()) == shape
        return losses


@dataclass(frozen=True)
class Resume:
    """Load on other ranks with other sharding types and train to the end."""

    folder: FilePath
    kinds: Kinds

    def __call__(self, world: World) -> list[float]:
        run = Run(world, self.kinds)
        progress = Checkpoints(str(self.folder), CheckpointConfig(), world).load(run.model, run.optimizer, {})
        assert progress is not None
        return run.train(progress.step, STEPS)


def test_checkpoint_of_two_ranks_continues_on_one_and_on_other_sharding_types(
    tmp_path: FilePath, expected: list[list[float]]
) -> None:
    run_ranks(2, in_world, Save(tmp_path, 4), join=False, timeout_s=60)
    whole = [sum(losses) / 2 for losses in zip(*expected, strict=True)][4:]
    for ranks in (1, 2):
        by_rank = run_ranks(ranks, in_world, Resume(tmp_path, AFTER), join=False, timeout_s=60)
        assert [sum(losses) / ranks for losses in zip(*by_rank, strict=True)] == pytest.approx(whole, rel=1e-5)
