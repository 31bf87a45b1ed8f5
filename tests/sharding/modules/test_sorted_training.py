"""Training with sorted updates: the same losses on any ranks, and from FBGEMM's checkpoints and back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.models.dlrm import DLRM
from torchrec.modules.embedding_configs import EmbeddingBagConfig

from dlrm_torchrec.datasets.synthetic.clicks import SyntheticStream
from dlrm_torchrec.datasets.synthetic.specs import demo_spec
from dlrm_torchrec.embeddings.compositional.collection import CompositionalEmbeddingBagCollection
from dlrm_torchrec.embeddings.compositional.operations import Add, Mult
from dlrm_torchrec.embeddings.compositional.partitions.arithmetic import QuotientRemainder
from dlrm_torchrec.embeddings.compositional.table_configs import CompositionalEmbeddingBagConfig
from dlrm_torchrec.embeddings.initialize import initialize_tables
from dlrm_torchrec.schema import Table
from dlrm_torchrec.sharding.cluster.topology import live_topology
from dlrm_torchrec.sharding.config import ShardingConfig, ShardingKind
from dlrm_torchrec.sharding.modules.sorted_updates import SortedTables
from dlrm_torchrec.sharding.plan import make_plan
from dlrm_torchrec.train.checkpoints.checkpoint import Checkpoints
from dlrm_torchrec.train.checkpoints.progress import Progress
from dlrm_torchrec.train.config import CheckpointConfig, OptimizerConfig, OptimizerKind, Speed
from dlrm_torchrec.train.optimizers import build_optimizer, optimize_tables_in_backward
from dlrm_torchrec.train.task import BinaryRankingTask
from tests.distributed import here, run_ranks

DIM, BATCH, STEPS = 16, 64, 8
OPERATIONS = {"t_list_1": Mult(), "t_list_0": Add()}
KINDS: dict[str, ShardingKind] = {"t_list_0": "row_wise", "t_id_4": "row_wise", "t_id_5": "table_row_wise"}


def config_of(table: Table) -> EmbeddingBagConfig:
    plain = {
        "name": table.name,
        "num_embeddings": table.rows,
        "embedding_dim": table.dim,
        "feature_names": list(table.features),
    }
    if table.name not in OPERATIONS:
        return EmbeddingBagConfig(**plain)
    return CompositionalEmbeddingBagConfig(
        **plain, partition=QuotientRemainder(table.rows, 4), operation=OPERATIONS[table.name]
    )


class Run:
    """A DLRM over plain and compositional tables, planned and sharded as by a recipe."""

    def __init__(self, kind: OptimizerKind, speed: Speed) -> None:
        spec, world = demo_spec(), here()
        optimizer = OptimizerConfig(kind=kind, lr=0.05)
        tables = CompositionalEmbeddingBagCollection(
            [config_of(table) for table in spec.tables(DIM)], device=torch.device("meta")
        )
        torch.manual_seed(0)
        task = BinaryRankingTask(DLRM(tables, len(spec.dense), [32, DIM], [32, 1]), world.size)
        optimize_tables_in_backward(tables, optimizer)
        plan = make_plan(
            task,
            tables,
            live_topology(world.device, world_size=world.size, local_size=world.local_size),
            ShardingConfig(kind="table_wise", tables=KINDS),
            speed=speed,
            batch_size=BATCH // world.size,
            spec=spec,
            group=world.control,
        )
        self.model = DistributedModelParallel(task, device=world.device, plan=plan, sharders=plan.sharders)
        initialize_tables(self.model, seed=0)
        self.optimizer = build_optimizer(self.model, optimizer, OptimizerConfig(kind="sgd", lr=0.1))
        self.stream = SyntheticStream(
            spec, num_rows=STEPS * BATCH, global_batch_size=BATCH, rank=world.rank, world_size=world.size
        )

    def train(self, first: int, last: int) -> list[float]:
        """The global losses of the steps from ``first`` to ``last``."""
        losses = []
        for _, batch in zip(range(first, last), self.stream.batches(first), strict=False):
            self.optimizer.zero_grad()
            loss, _ = self.model(batch)
            loss.backward()
            self.optimizer.step()
            total = loss.detach().double()
            dist.all_reduce(total)
            losses.append(float(total) / dist.get_world_size())
        return losses

    def sorted_kernels(self) -> int:
        lookups = [lookup for module in self.model.modules() for lookup in getattr(module, "_lookups", [])]
        return sum(isinstance(kernel.forward, SortedTables) for lookup in lookups for kernel in lookup.modules())


def losses_of(kind: OptimizerKind, speed: Speed) -> tuple[int, list[float]]:
    run = Run(kind, speed)
    return run.sorted_kernels(), run.train(0, STEPS)


@pytest.mark.parametrize("kind", ["rowwise_adagrad", "adam"])
def test_losses_are_the_same_on_any_ranks_and_with_fbgemm(kind: OptimizerKind) -> None:
    ((alone, wanted),) = run_ranks(1, losses_of, kind, ("sorted",))
    both = run_ranks(2, losses_of, kind, ("sorted",))
    assert alone > 0
    assert all(kernels > 0 for kernels, _ in both)
    for _, losses in both:
        assert losses == pytest.approx(wanted, abs=2e-6)
    assert wanted[-1] < wanted[0]
    if kind != "adam":
        ((composed, theirs),) = run_ranks(1, losses_of, kind, ("exact",))
        assert 0 < composed < alone  # only compositional tables, which sum rows that FBGEMM updates slowly
        assert theirs == pytest.approx(wanted, abs=2e-6)


def resumed(folder: str, kind: OptimizerKind, first: Speed, then: Speed) -> tuple[list[float], list[float]]:
    """Losses of the second half of a run: uninterrupted, and resumed at the speed ``then``."""
    run = Run(kind, first)
    run.train(0, STEPS // 2)
    folder = f"{folder}/{kind}-{first[0]}-{then[0]}"
    progress = Progress(identity={}, lanes=1, step=STEPS // 2)
    Checkpoints(folder, CheckpointConfig(), here()).finish(run.model, run.optimizer, progress)
    losses = run.train(STEPS // 2, STEPS)
    again = Run(kind, then)
    assert Checkpoints(folder, CheckpointConfig(), here()).load(again.model, again.optimizer, {}) is not None
    return losses, again.train(STEPS // 2, STEPS)


@pytest.mark.parametrize("ranks", [1, 2])
def test_checkpoints_are_fbgemms(tmp_path: Path, ranks: int) -> None:
    cases: list[tuple[OptimizerKind, Speed, Speed]] = [("rowwise_adagrad", ("exact",), ("sorted",))]
    cases += [("adagrad", ("sorted",), ("exact",)), ("adam", ("sorted",), ("sorted",))] if ranks == 1 else []
    for case in cases:
        for losses, again in run_ranks(ranks, resumed, str(tmp_path), *case):
            assert again == pytest.approx(losses, abs=2e-6)
