"""Sharded tables are zeros until they are initialised, with the numbers of tables that are not sharded."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.types import ShardingPlan
from torchrec.modules.embedding_configs import EmbeddingBagConfig

from dlrm_torchrec.embeddings import initialize
from dlrm_torchrec.embeddings.compositional.collection import CompositionalEmbeddingBagCollection
from dlrm_torchrec.embeddings.compositional.operations import Mult
from dlrm_torchrec.embeddings.compositional.partitions.arithmetic import QuotientRemainder
from dlrm_torchrec.embeddings.compositional.stacked_rows import InitialRows
from dlrm_torchrec.embeddings.compositional.table_configs import (
    CompositionalEmbeddingBagConfig,
    StackedEmbeddingBagConfig,
)
from dlrm_torchrec.sharding.modules.blank import BlankTables
from dlrm_torchrec.sharding.modules.compositional import CompositionalEmbeddingBagCollectionSharder
from dlrm_torchrec.train.config import OptimizerConfig
from dlrm_torchrec.train.optimizers import optimize_tables_in_backward
from tests.distributed import run_ranks
from tests.sharding.sharded import Wrapped, hand_made_plan

KINDS = ["data_parallel", "table_wise", "column_wise", "row_wise", "table_row_wise", "grid_shard"]
ROWS, DIM = 90, 16


def test_only_uniform_numbers_are_left_out() -> None:
    with BlankTables():
        assert not torch.nn.init.uniform_(torch.zeros(5), 1, 2).any()
        assert not torch.zeros(5).uniform_(1, 2).any()
        assert torch.nn.init.constant_(torch.zeros(5), 3).eq(3).all()
        assert torch.zeros(5).normal_().any()
    assert torch.zeros(5).uniform_(1, 2).all()


def drawn_by_ranks() -> list[str]:
    """What is wrong with the tables of this rank."""
    configs = [EmbeddingBagConfig(ROWS, DIM, name=kind, feature_names=[kind]) for kind in KINDS]
    whole = CompositionalEmbeddingBagConfig(
        num_embeddings=ROWS, embedding_dim=DIM, name="mult", feature_names=["mult"],
        partition=QuotientRemainder(ROWS, 7), operation=Mult(),
    )  # fmt: skip
    tables = CompositionalEmbeddingBagCollection([*configs, whole], device=torch.device("meta"))
    optimize_tables_in_backward(tables, OptimizerConfig(kind="sgd", lr=0.1))
    plan = hand_made_plan(tables, {**dict(zip(KINDS, KINDS, strict=True)), "mult": "column_wise"})
    sharders = [CompositionalEmbeddingBagCollectionSharder(torch.optim.SGD)]
    model = DistributedModelParallel(
        Wrapped(tables), device=torch.device("cpu"), plan=ShardingPlan({"tables": plan}), sharders=sharders
    )
    pieces = {name: list(initialize._blocks(weight)) for name, weight in model.state_dict().items()}
    wrong = [  # FBGEMM itself draws replicated tables
        f"{name} is not blank"
        for name, blocks in pieces.items()
        if "data_parallel" not in name and any(piece.any() for piece, _, _ in blocks)
    ]

    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(initialize, "REPORT_EVERY_S", 0.0)
        patch.setattr(initialize, "_BLOCK_BYTES", 1000)  # so that pieces are cut
        initialize.initialize_tables(model, seed=3, say=said.append)
    held = sum(piece.nbytes for blocks in pieces.values() for piece, _, _ in blocks)
    if said[-1] != f"this rank has drawn {held / 1e9:.1f} of its {held / 1e9:.1f} GB of tables" or len(said) < 10:
        wrong.append(f"reports: {said}")

    for config in tables.physical_configs():
        expected = torch.empty(config.num_embeddings, config.embedding_dim)
        plain = [InitialRows.plain(config.num_embeddings)]
        parts = config.initial_rows() if isinstance(config, StackedEmbeddingBagConfig) else plain
        initialize.fill_table(expected, parts, seed=3, table=config.name)
        for piece, row, column in pieces[f"tables.embedding_bags.{config.name}.weight"]:
            if not torch.equal(piece, expected[row : row + len(piece), column : column + piece.size(1)]):
                wrong.append(f"{config.name} on rank {dist.get_rank()}")
    return wrong


@pytest.mark.parametrize("ranks", [1, 2])
def test_any_sharding_draws_the_tables_of_none(ranks: int) -> None:
    assert run_ranks(ranks, drawn_by_ranks) == [[]] * ranks
