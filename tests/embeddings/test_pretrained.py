"""Runs that begin with another run's weights, moments and dense parameters: the next step is the one by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.types import ShardedTensor, ShardingPlan
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrm_torchrec.embeddings.compositional.collection import CompositionalEmbeddingBagCollection
from dlrm_torchrec.embeddings.compositional.operations import Add
from dlrm_torchrec.embeddings.compositional.partitions.arithmetic import Hash
from dlrm_torchrec.embeddings.compositional.partitions.assigned import Assigned
from dlrm_torchrec.embeddings.compositional.partitions.together import Together
from dlrm_torchrec.embeddings.compositional.table_configs import CompositionalEmbeddingBagConfig
from dlrm_torchrec.embeddings.initialize import initialize_tables
from dlrm_torchrec.embeddings.pretrained import read_dense
from dlrm_torchrec.sharding.modules.compositional import CompositionalEmbeddingBagCollectionSharder
from dlrm_torchrec.sharding.modules.sharder import table_optimizer
from dlrm_torchrec.train.config import OptimizerConfig, OptimizerKind
from dlrm_torchrec.train.optimizers import build_optimizer, optimize_tables_in_backward
from tests.distributed import run_ranks
from tests.sharding.sharded import hand_made_plan

IDS, DIM, STEP = 30, 8, 50
PARTITION = Together((Assigned([torch.arange(IDS) % 7], complementary=False), Hash(IDS, 5, seed=2)))
ROWS = sum(PARTITION.classes)
BATCH = torch.tensor([3, 4, 4, 29, 11, 3, 0, 17])  # one id per row
MOMENTS: dict[OptimizerKind, dict[str, tuple[int, ...]]] = {
    "rowwise_adagrad": {"momentum1": (ROWS,)},
    "adagrad": {"momentum1": (ROWS, DIM)},
    "adam": {"momentum1": (ROWS, DIM), "exp_avg_sq": (ROWS, DIM)},
}


class Model(nn.Module):
    def __init__(self, tables: CompositionalEmbeddingBagCollection) -> None:
        super().__init__()
        self.tables, self.top = tables, nn.Linear(2, 1)


def towards() -> torch.Tensor:
    return torch.randn(len(BATCH), DIM, generator=torch.Generator().manual_seed(5))


def one_step(folder: str, kind: str, config: OptimizerConfig) -> tuple[Any, list[str], float]:
    """The pieces of the table after a step, each with its place; what was said; and a weight of the other layer."""
    table = CompositionalEmbeddingBagConfig(
        name="t", num_embeddings=IDS, embedding_dim=DIM, feature_names=["f"], partition=PARTITION, operation=Add()
    )
    tables = CompositionalEmbeddingBagCollection([table], device=torch.device("meta"))
    optimize_tables_in_backward(tables, config)
    sharder = CompositionalEmbeddingBagCollectionSharder(table_optimizer(tables), None)
    plan = ShardingPlan({"tables": hand_made_plan(tables, {"t": kind})})
    model = DistributedModelParallel(Model(tables), device=torch.device("cpu"), plan=plan, sharders=[sharder])
    optimizer = build_optimizer(model, config, OptimizerConfig(kind="sgd", lr=0.0))
    said: list[str] = []
    initialize_tables(model, optimizer, seed=0, pretrained=folder, say=said.append)
    ids = KeyedJaggedTensor(keys=["f"], values=BATCH, lengths=torch.ones_like(BATCH))
    model.module.tables(ids).values().mul(towards()).sum().backward()
    optimizer.step()
    weight = model.state_dict()["tables.embedding_bags.t.weight"]
    pieces = [((0, 0), weight.detach().clone())]
    if isinstance(weight, ShardedTensor):
        pieces = [(tuple(s.metadata.shard_offsets), s.tensor.detach().clone()) for s in weight.local_shards()]
    return pieces, said, float(model.state_dict()["top.weight"][0, 0])


def by_hand(weight: torch.Tensor, moments: dict[str, torch.Tensor], config: OptimizerConfig) -> torch.Tensor:
    """The table after a step, in float64, from the formulas of the optimizers."""
    gradient = torch.zeros(ROWS, DIM, dtype=torch.float64)
    first, second = PARTITION.of(BATCH)
    for rows in (first, second + 7):
        gradient.index_add_(0, rows, towards().double())
    touched = (gradient != 0).any(1, keepdim=True)
    first_moment = moments["momentum1"].double()
    if config.kind == "adam":
        (b1, b2), t = config.betas, STEP + 1
        m = b1 * first_moment + (1 - b1) * gradient
        v = b2 * moments["exp_avg_sq"].double() + (1 - b2) * gradient**2
        update = m / (1 - b1**t) / ((v / (1 - b2**t)).sqrt() + config.eps)
    elif config.kind == "adagrad":
        update = gradient / ((first_moment + gradient**2).sqrt() + config.eps)
    else:
        update = gradient / ((first_moment + (gradient**2).mean(1)).sqrt() + config.eps)[:, None]
    return weight.double() - config.lr * torch.where(touched, update, 0)


CASES = [
    *((1, "table_wise", kind) for kind in MOMENTS),
    *((2, "row_wise", kind) for kind in MOMENTS),
    *((2, "data_parallel", kind) for kind in MOMENTS if kind != "adam"),
    *((2, "column_wise", kind) for kind in ("adagrad", "adam")),
]


@pytest.mark.parametrize(("ranks", "sharding", "kind"), CASES)
def test_the_next_step_is_that_by_hand(tmp_path: Path, ranks: int, sharding: str, kind: OptimizerKind) -> None:
    config = OptimizerConfig(kind=kind, lr=0.3, eps=1e-4)
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(ROWS, DIM, generator=generator)
    moments = {name: torch.rand(size, generator=generator) for name, size in MOMENTS[kind].items()}
    save_file({"weight": weight, **moments}, tmp_path / "t.safetensors", {"step": str(STEP)})
    save_file({"top.weight": torch.full((1, 2), 0.625)}, tmp_path / "dense.safetensors")
    found = torch.full((ROWS, DIM), torch.nan)
    for pieces, said, dense in run_ranks(ranks, one_step, str(tmp_path), sharding, config):
        assert (said, dense) == ([], 0.625)
        for (row, column), piece in pieces:
            found[row : row + len(piece), column : column + piece.size(1)] = piece
    torch.testing.assert_close(found.double(), by_hand(weight, moments, config), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(
        found.double(), by_hand(weight, {n: m * 0 for n, m in moments.items()}, config), atol=1e-3
    )


def test_moments_of_another_optimizer_are_left_out_and_said(tmp_path: Path) -> None:
    config = OptimizerConfig(kind="rowwise_adagrad", lr=0.3, eps=1e-4)
    weight = torch.randn(ROWS, DIM)
    save_file({"weight": weight, "momentum1": torch.ones(ROWS, DIM)}, tmp_path / "t.safetensors", {"step": "9"})
    ((pieces, said, _),) = run_ranks(1, one_step, str(tmp_path), "table_wise", config)
    assert said == [f"{tmp_path}/t.safetensors has moments of another optimizer, so those of this table begin at 0"]
    expected = by_hand(weight, {"momentum1": torch.zeros(ROWS)}, config)
    torch.testing.assert_close(pieces[0][1].double(), expected, rtol=1e-5, atol=1e-6)


def test_dense_parameters_of_another_model_are_refused(tmp_path: Path) -> None:
    save_file({"weight": torch.ones(1, 3)}, tmp_path / "dense.safetensors")
    with pytest.raises(
        ValueError, match=r"must hold parameters of this model: got weight of shape \(1, 3\); remove the"
    ):
        read_dense(nn.Linear(2, 1), str(tmp_path))
