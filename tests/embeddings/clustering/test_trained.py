"""Vectors and moments of ids of a trained table, stored in any way, against the definitions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dlrm_torchrec.embeddings.assignments import Assignment
from dlrm_torchrec.embeddings.clustering import trained
from dlrm_torchrec.embeddings.clustering.trained import moments_of, stored_as, vectors_of
from dlrm_torchrec.embeddings.compositional.partitions.assigned import Assigned
from dlrm_torchrec.embeddings.compositional.table_configs import StackedEmbeddingBagConfig
from dlrm_torchrec.embeddings.config import TablesConfig
from dlrm_torchrec.schema import Table
from tests.embeddings.compositional import reference

ROWS, DIM = 70, 12
TABLE = Table(name="t", rows=ROWS, dim=1, features=("f",))
CONFIGS = [
    TablesConfig(kind="hash", threshold=5),
    TablesConfig(kind="hashes", threshold=5),
    TablesConfig(kind="hashes", threshold=5, operation="concat", partitions=3),
    TablesConfig(kind="quotient_remainder", threshold=5),
    TablesConfig(kind="quotient_remainder", threshold=5, operation="path", hidden=7),
    TablesConfig(kind="mixed_radix", threshold=5, operation="concat", partitions=3),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: f"{config.kind} {config.combination}")
def test_vectors_are_those_of_the_definition(config: TablesConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trained, "_CHUNK", 32)
    row_dim = DIM // 3 if config.operation == "concat" else DIM
    stored = stored_as(TABLE, config, row_dim)
    assert isinstance(stored, StackedEmbeddingBagConfig)
    assert stored.embedding_dim == row_dim
    weight = torch.randn(stored.num_embeddings, row_dim)
    expected = torch.stack(
        [reference.vector(stored.operation, stored.stack.partition, weight.double(), x) for x in range(ROWS)]
    )
    torch.testing.assert_close(vectors_of(stored, weight).double(), expected, rtol=1e-4, atol=1e-5)


def test_plain_tables_and_those_of_assignments(tmp_path: Path) -> None:
    weight, moments = torch.randn(ROWS, DIM).half(), torch.rand(ROWS)
    plain = stored_as(TABLE, TablesConfig(kind="hash"), DIM)  # below the threshold
    assert torch.equal(vectors_of(plain, weight), weight.float())
    assert moments_of(plain, moments) is moments
    made = Assignment(assigned=Assigned([torch.arange(ROWS) % 9], complementary=False), made="", hash_classes=4)
    save_file(made.tensors(), tmp_path / "t.safetensors", made.metadata())
    stored = stored_as(TABLE, TablesConfig(kind="clusters", assignments=str(tmp_path)), DIM)
    rows = torch.randn(13, DIM)
    first, second = made.partition.of(torch.arange(ROWS))
    torch.testing.assert_close(vectors_of(stored, rows), rows[first] + rows[9 + second])
    for own in (torch.rand(13), torch.rand(13, DIM)):
        found = moments_of(stored, own)
        assert found is not None
        torch.testing.assert_close(found, (own[first] + own[9 + second]) / 2)


def test_moments_of_factors_are_not_those_of_vectors() -> None:
    stored = stored_as(TABLE, TablesConfig(kind="quotient_remainder", threshold=5), DIM)
    assert moments_of(stored, torch.rand(stored.num_embeddings)) is None


@pytest.mark.parametrize(
    "config",
    [
        TablesConfig(kind="mixed_dimension"),
        TablesConfig(kind="quotient_remainder", threshold=5, operation="feature_generation"),
    ],
)
def test_tables_without_one_vector_are_refused(config: TablesConfig) -> None:
    with pytest.raises(
        ValueError, match=rf"table 't' must give one vector of the model's dim: got {config.kind} tables"
    ):
        stored_as(TABLE, config, DIM)
