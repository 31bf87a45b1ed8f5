"""What this project learned about its stack and relies on: when one of these fails after an upgrade, think again."""

from __future__ import annotations

import io
import pickle
from operator import length_hint
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
from fbgemm_gpu.split_table_batched_embeddings_ops_training import ComputeDevice, SplitTableBatchedEmbeddingBagsCodegen
from iopath.common.file_io import g_pathmgr
from torch import nn
from torch.distributed.optim import _apply_optimizer_in_backward as apply_in_backward
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
from torchrec.distributed.planner.enumerators import EmbeddingEnumerator
from torchrec.distributed.planner.types import ParameterConstraints
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist
from torchrec.metrics.ne import compute_logloss, get_ne_states
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.optim import RowWiseAdagrad
from torchrec.optim.keyed import CombinedOptimizer
from torchrec.optim.optimizers import in_backward_optimizer_filter
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrm_torchrec.sharding.modules.sharder import ROW_TYPES, ExactSharder
from dlrm_torchrec.train.checkpoints.storage import IoPathWriter
from tests.distributed import run_ranks

CPU = torch.device("cpu")
SHARDERS: Any = [ExactSharder(torch.optim.SGD)]  # every sharding type on CPU


class Model(nn.Module):
    """A table of 8 rows and dim 8; the loss of a pooled vector is its product with 0..7."""

    def __init__(self, optimizer: type[torch.optim.Optimizer] | None) -> None:
        super().__init__()
        config = EmbeddingBagConfig(name="t", num_embeddings=8, embedding_dim=8, feature_names=["f"])
        self.tables = EmbeddingBagCollection(tables=[config], device=torch.device("meta"))
        if optimizer is not None:
            apply_in_backward(optimizer, self.tables.parameters(), {"lr": 0.1})

    def forward(self, ids: KeyedJaggedTensor) -> tuple[torch.Tensor, torch.Tensor]:
        pooled = self.tables(ids)["f"]
        return (pooled * torch.arange(8)).sum(), pooled.detach()


def batch(rows: int) -> KeyedJaggedTensor:
    """One id per row: 0, 1, 2, ..."""
    return KeyedJaggedTensor(["f"], torch.arange(rows), lengths=torch.ones(rows, dtype=torch.int32))


def shard(optimizer: type[torch.optim.Optimizer], kind: str) -> Any:
    """``Model`` sharded over the current process group, in halves where ``kind`` is column-wise."""
    model, ranks = Model(optimizer), dist.get_world_size()
    planner = EmbeddingShardingPlanner(
        topology=Topology(world_size=ranks, local_world_size=ranks, compute_device="cpu"),
        constraints={"t": ParameterConstraints(sharding_types=[kind], min_partition=4)},
        stats=[],
    )
    plan = planner.collective_plan(model, SHARDERS, dist.group.WORLD)
    return DistributedModelParallel(model, device=CPU, plan=plan, sharders=SHARDERS)


def options(optimizer: type[torch.optim.Optimizer] | None, constraint: ParameterConstraints) -> Any:
    """The sharding options that the planner may choose from for ``Model`` on two CPU ranks."""
    topology = Topology(world_size=2, compute_device="cpu")
    return EmbeddingEnumerator(topology, 4, constraints={"t": constraint}).enumerate(Model(optimizer), SHARDERS)


def test_fbgemm_has_no_adam_on_cpu() -> None:
    """``make_plan`` refuses Adam tables on a CPU with a sentence of its own."""
    table = [(8, 8, EmbeddingLocation.HOST, ComputeDevice.CPU)]
    with pytest.raises(AssertionError, match="not supported in CPU mode"):
        SplitTableBatchedEmbeddingBagsCodegen(table, optimizer=EmbOptimType.ADAM)


def test_torchrec_hides_row_types_on_cpu_only() -> None:
    """``ExactSharder.sharding_types`` puts them back."""
    sharder = EmbeddingBagCollectionSharder()
    assert set(ROW_TYPES) - set(sharder.sharding_types("cuda")) == set()
    assert set(ROW_TYPES) & set(sharder.sharding_types("cpu")) == set()


def marked_and_moved() -> list[tuple[bool, bool]]:
    """Whether a sharded parameter says that backward updates it, and whether backward does."""
    found = []
    for kind in ("table_wise", "data_parallel"):
        model = shard(torch.optim.SGD, kind)
        (parameter,) = model.parameters()
        before = parameter.detach().clone()
        model(batch(4))[0].backward()
        marked = list(in_backward_optimizer_filter(model.named_parameters(), include=True))
        found.append((len(marked) == 1, not torch.equal(parameter, before)))
    return found


def test_backward_leaves_data_parallel_tables_alone() -> None:
    """``build_optimizer`` gives them an optimizer, told from fused tables by the missing mark."""
    assert run_ranks(1, marked_and_moved) == [[(True, True), (False, False)]]


def test_logloss_of_torchrec_is_in_bits() -> None:
    """``ranking_metrics`` turns it into nats."""
    ones = torch.ones(4, dtype=torch.float64)
    states = get_ne_states(torch.tensor([0.0, 1, 1, 0]).double(), ones / 2, ones, 1e-12)
    zeros = torch.zeros(())  # no threshold on the number of samples
    loss = compute_logloss(states["cross_entropy_sum"], states["pos_labels"], states["neg_labels"], zeros)
    assert float(loss) == pytest.approx(1.0)


def test_planner_counts_optimizer_state_only_of_marked_parameters() -> None:
    """``optimize_tables_in_backward`` must come before ``make_plan``."""
    found = [
        options(optimizer, ParameterConstraints(sharding_types=["table_wise"]))[0].total_storage.ddr
        for optimizer in (None, torch.optim.SGD, torch.optim.Adagrad, torch.optim.Adam)
    ]
    weights = 4 * 8 * 8
    assert [count - found[0] for count in found] == [0, 0, weights, 2 * weights]


def test_constraint_without_sharding_types_leaves_the_choice_open() -> None:
    """``ShardingConfig(kind="auto")`` passes None."""
    kinds = {option.sharding_type for option in options(None, ParameterConstraints(sharding_types=None))}
    assert kinds >= {"data_parallel", "table_wise", "column_wise", "row_wise", "table_row_wise"}


def moved_by_a_changed_rate() -> list[float]:
    """How far SGD of rate 0.1 moves column 1 when the rate becomes 5 before zero_grad, or after it."""
    found = []
    for early in (True, False):
        model = shard(torch.optim.SGD, "table_wise")
        (parameter,) = model.parameters()
        before = parameter[0, 1].item()
        if early:
            model.fused_optimizer.param_groups[0]["lr"] = 5.0
        model.fused_optimizer.zero_grad()
        model.fused_optimizer.param_groups[0]["lr"] = 5.0
        model(batch(1))[0].backward()
        found.append(before - parameter[0, 1].item())
    return found


def test_fused_tables_read_the_learning_rate_in_zero_grad() -> None:
    """``ScheduledLearningRate.set`` comes before the step's ``zero_grad``, which ``pipeline.progress`` calls."""
    assert run_ranks(1, moved_by_a_changed_rate) == [[pytest.approx(5.0), pytest.approx(0.1)]]


def uneven_steps() -> list[str]:
    """What comes of a step with 2 rows on rank 0 and 3 on rank 1, table-wise and row-wise."""
    found = []
    for kind in ("table_wise", "row_wise"):
        loss, _ = shard(torch.optim.SGD, kind)(batch(2 + dist.get_rank()))
        try:
            loss.backward()
            found.append("trained")
        except RuntimeError as error:
            found.append(str(error))
    return found


def test_row_wise_backward_needs_equal_batches_on_gloo() -> None:
    """``Batch`` is padded to the same number of rows on every rank."""
    found = run_ranks(2, uneven_steps)
    assert [table_wise for table_wise, _ in found] == ["trained", "trained"]
    assert all("size" in row_wise for _, row_wise in found), found


def test_checkpoint_metadata_is_a_pickle_of_these_names(tmp_path: Path) -> None:
    """``IoPathReader`` unpickles with an allow-list: a name that is new here must be added there."""
    names = set()

    class Naming(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            names.add(f"{module}.{name}".removeprefix("torch.distributed.checkpoint."))
            return super().find_class(module, name)

    state = {"model": nn.Linear(3, 2).state_dict(), "optimizer": {"step": torch.zeros((), dtype=torch.bfloat16)}}
    with pytest.warns(UserWarning, match="single process"):
        dcp.save(state, storage_writer=IoPathWriter(str(tmp_path)))
    Naming(io.BytesIO((tmp_path / ".metadata").read_bytes())).load()
    records = ["Metadata", "MetadataIndex", "StorageMeta", "TensorStorageMetadata", "TensorProperties"]
    names -= {"builtins.getattr"}  # up to Python 3.11.3, of a member of _MEM_FORMAT_ENCODING
    assert names == {
        *(f"metadata.{name}" for name in (*records, "ChunkStorageMetadata", "_MEM_FORMAT_ENCODING")),
        *("filesystem._StorageInfo", "torch.serialization._get_layout"),
        *("torch.Size", "torch.float32", "torch.bfloat16"),
    }


def test_mv_of_iopath_refuses_to_replace(tmp_path: Path) -> None:
    """``Checkpoints`` checks its answer, and never writes over a marker."""
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_text("old")
    new.write_text("new")
    assert g_pathmgr.mv(str(new), str(old)) is False
    assert (old.read_text(), new.read_text()) == ("old", "new")


def batches_read() -> list[int]:
    """How many of 5 batches the pipeline has read when it has trained 1, 2, 3, 4, 5."""
    model = shard(torch.optim.SGD, "table_wise")
    pipeline = TrainPipelineSparseDist(model, CombinedOptimizer([model.fused_optimizer]), CPU)
    numbers, read = iter(range(5)), []
    batches = (batch(2) for _ in numbers)
    for _ in range(5):
        pipeline.progress(batches)
        read.append(5 - length_hint(numbers))
    return read


def test_pipeline_reads_two_batches_ahead() -> None:
    """A checkpoint counts steps trained, not batches read, and the stream is positioned by it."""
    assert run_ranks(1, batches_read) == [[3, 4, 5, 5, 5]]


def moments_of_row_0() -> list[list[float]]:
    """The row-wise Adagrad moments of row 0 after one step, per shard, table-wise and column-wise."""
    found = []
    for kind in ("table_wise", "column_wise"):
        model = shard(RowWiseAdagrad, kind)
        model(batch(1))[0].backward()
        (state,) = model.fused_optimizer.state_dict()["state"].values()
        (moment,) = state.values()
        found.append([shard.tensor.flatten()[0].item() for shard in moment.local_shards()])
    return found


def test_row_wise_adagrad_differs_between_column_shards() -> None:
    """``CHANGED_BY`` keeps column types from it: a moment is the mean over the shard's columns, not the row's."""
    ((table_wise, column_wise),) = run_ranks(1, moments_of_row_0)
    squares = [column**2 for column in range(8)]
    assert table_wise == pytest.approx([sum(squares) / 8])
    assert column_wise == pytest.approx([sum(squares[:4]) / 4, sum(squares[4:]) / 4])
