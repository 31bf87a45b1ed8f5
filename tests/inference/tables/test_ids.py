"""Served tables of single ids: what the trained collection gives with rounded rows, scripted."""

from __future__ import annotations

import random

import pytest
import torch
from torchrec.modules.embedding_configs import EmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrm_torchrec.embeddings.compositional.operations import Add, Concat, FeatureGeneration
from dlrm_torchrec.embeddings.compositional.sequences import CompositionalEmbeddingCollection
from dlrm_torchrec.embeddings.compositional.table_configs import CompositionalEmbeddingConfig
from dlrm_torchrec.inference.config import TableType
from dlrm_torchrec.inference.tables.ids import ServedIdTables, serve_id_tables
from dlrm_torchrec.inference.tables.serve import table_weights
from tests.inference.tables.test_serve import DIM, OPERATIONS, PARTITIONS, ROWS, round_tables


def plain(name: str, features: list[str]) -> EmbeddingConfig:
    return EmbeddingConfig(name=name, num_embeddings=ROWS, embedding_dim=DIM, feature_names=features)


def collections() -> list[EmbeddingCollection]:
    """Every kind of table in one collection, with plain ones between them; and plain ones alone."""
    kinds = [
        CompositionalEmbeddingConfig(
            name=f"t{number}", num_embeddings=ROWS, embedding_dim=DIM, feature_names=[f"f{number}", f"g{number}"],
            partition=partition, operation=operation,
        )
        for number, (partition, operation) in enumerate(
            (partition, operation)
            for partition in PARTITIONS
            for operation in OPERATIONS
            if not isinstance(operation, FeatureGeneration)
            and not (isinstance(operation, Concat) and DIM % len(partition.classes))
            and not (partition.shared_from and not isinstance(operation, (Add, Concat)))
        )
    ]  # fmt: skip
    return [
        CompositionalEmbeddingCollection([plain("p", ["a", "b"]), *kinds, plain("q", ["c"])]),
        EmbeddingCollection([plain("p", ["a", "b"]), plain("q", ["c"])]),
    ]


@pytest.mark.parametrize("number", range(2))
def test_vectors_are_those_of_the_collection_with_rounded_rows(number: int) -> None:
    torch.manual_seed(number)
    random.seed(number)
    tables = collections()[number]
    fits: tuple[TableType, ...] = ("fp32", "fp16", "int8", "int4")
    types = {name: random.choice(fits) for name in table_weights(tables)}
    features = [name for config in tables.embedding_configs() for name in config.feature_names]
    random.shuffle(features)
    served = ServedIdTables(tables, types, features)
    program = torch.jit.script(served.lookup)
    round_tables(tables, types)
    for longest in (3, 1, 0):
        lengths = torch.randint(longest + 1, (len(features), 5), dtype=torch.int32)
        ids = torch.randint(ROWS, (int(lengths.sum()),))
        expected = tables(KeyedJaggedTensor(keys=features, values=ids, lengths=lengths.flatten()))
        eager = served(KeyedJaggedTensor(keys=features, values=ids, lengths=lengths.flatten()))
        scripted = program(ids, lengths.long().sum(1))
        for name, found in zip(features, scripted, strict=True):
            torch.testing.assert_close(found, expected[name].values(), rtol=2e-5, atol=2e-6)
            torch.testing.assert_close(eager[name].values(), found, rtol=0, atol=0)


def test_a_type_that_does_not_fit_is_refused() -> None:
    tables = EmbeddingCollection([plain("p", ["a"])])
    model = torch.nn.Sequential(tables)
    with pytest.raises(ValueError, match=r"type of table 'p' must be one of fp32, .*: got 'bf16'"):
        serve_id_tables(model, tables, {"p": "bf16"}, ["a"])  # type: ignore[dict-item]  # what is refused
    with pytest.raises(ValueError, match=r"types must name every table and no others: got \['p'\] on only one side"):
        serve_id_tables(model, tables, {}, ["a"])
    served = serve_id_tables(model, tables, {"p": "int8"}, ["a"])
    assert isinstance(served.get_submodule("0"), ServedIdTables)
