"""Tables as a recipe's config wants them: kinds, sizes, thresholds, and the checkpoints that tell them apart."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path as FilePath
from typing import Any, get_args

import pytest
import torch
from torch import nn
from torchrec.modules.embedding_configs import DataType
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection

from dlrm_torchrec.datasets.criteo import criteo_kaggle_spec
from dlrm_torchrec.datasets.synthetic.specs import demo_spec
from dlrm_torchrec.embeddings.compositional.collection import CompositionalEmbeddingBagCollection
from dlrm_torchrec.embeddings.compositional.operations import Path
from dlrm_torchrec.embeddings.compositional.sequences import CompositionalEmbeddingCollection
from dlrm_torchrec.embeddings.compositional.stacked_rows import StackedRows
from dlrm_torchrec.embeddings.compositional.table_configs import StackedEmbeddingBagConfig
from dlrm_torchrec.embeddings.compositional.tensor_train import TensorTrain
from dlrm_torchrec.embeddings.config import DataTypeName, OperationName, TablesConfig, TablesKind, Tail
from dlrm_torchrec.embeddings.mixed_dimensions import MixedDimensionEmbeddingBagCollection
from dlrm_torchrec.embeddings.tables import (
    build_sequence_tables,
    build_tables,
    model_configs,
    partition_of,
    physical_configs,
    read_tables,
    write_tables,
)
from dlrm_torchrec.schema import Table

TABLES = [Table(name=f"t{rows}", rows=rows, dim=16, features=(f"f{rows}",)) for rows in (50, 900, 10_000)]


def rows(config: TablesConfig) -> list[int]:
    return [table.num_embeddings for table in physical_configs(build_tables(TABLES, config))]


def test_plain_by_default_and_where_the_threshold_spares_every_table() -> None:
    for config in (TablesConfig(), TablesConfig(kind="quotient_remainder", threshold=10_000)):
        tables = build_tables(TABLES, config)
        assert type(tables) is EmbeddingBagCollection
        assert rows(config) == [50, 900, 10_000]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (TablesConfig(kind="hash"), [50, 225, 2500]),
        (TablesConfig(kind="hash", operation="path"), [50, 225, 2500]),  # one row per id: nothing to combine
        (TablesConfig(kind="quotient_remainder"), [50, 225 + 4, 2500 + 4]),
        (TablesConfig(kind="quotient_remainder", threshold=900), [50, 900, 2504]),
        (TablesConfig(kind="quotient_remainder", threshold=0), [13 + 4, 229, 2504]),
        (TablesConfig(kind="quotient_remainder", collisions=0), [50, 30 + 30, 100 + 100]),
        (TablesConfig(kind="quotient_remainder", max_rows=1010), [50, 900 + 1, 1000 + 10]),
        (TablesConfig(kind="mixed_radix", partitions=3), [50, 225 + 2 + 2, 2500 + 2 + 2]),
        (TablesConfig(kind="mixed_radix", partitions=4, collisions=0), [50, 6 + 6 + 5 + 5, 40]),
        (TablesConfig(kind="chinese_remainder"), [50, 225 + 4, 2501 + 4]),
        (TablesConfig(kind="quotient_remainder", operation="path", hidden=16), [50, 225 + 4 * 34, 2500 + 4 * 34]),
        (TablesConfig(kind="quotient_remainder", operation="path", hidden=0), [50, 225 + 4 * 16, 2500 + 4 * 16]),
        (
            TablesConfig(kind="mixed_radix", operation="tensor_train", partitions=3, rank=6),
            [50, 225 + 2 * 6 + 2 * 2, 2500 + 2 * 6 + 2 * 2],
        ),
        (
            TablesConfig(kind="mixed_radix", operation="tensor_train", partitions=3, max_rows=500),
            [50, 450 + 2 * 4 + 1 * 1, 455 + 5 * 4 + 5 * 1],
        ),
    ],
)
def test_physical_rows(config: TablesConfig, expected: list[int]) -> None:
    assert rows(config) == expected
    tables = build_tables(TABLES, config)
    assert isinstance(tables, CompositionalEmbeddingBagCollection)
    assert [(t.num_embeddings, t.embedding_dim) for t in tables.embedding_bag_configs()] == [
        (t.rows, t.dim) for t in TABLES
    ]


@pytest.mark.parametrize("operation", ["mult", "add", "concat", "path", "tensor_train"])
@pytest.mark.parametrize("kind", ["quotient_remainder", "mixed_radix", "chinese_remainder"])
def test_tables_of_single_ids_are_stored_as_pooled_ones(kind: TablesKind, operation: OperationName) -> None:
    config = TablesConfig(kind=kind, operation=operation)
    pooled, single = build_tables(TABLES, config), build_sequence_tables(TABLES, config)
    assert isinstance(single, CompositionalEmbeddingCollection)
    stored, expected = (
        [(each.name, each.num_embeddings, each.embedding_dim, each.data_type) for each in physical_configs(tables)]
        for tables in (single, pooled)
    )
    assert stored == expected
    both = nn.ModuleList([single, pooled])
    assert model_configs(both) == [*single.embedding_configs(), *pooled.embedding_bag_configs()]
    assert len(physical_configs(both)) == 2 * len(TABLES)
    assert type(build_sequence_tables(TABLES)) is EmbeddingCollection


def test_hidden_units_reach_the_operation() -> None:
    stacked = physical_configs(
        build_tables(TABLES, TablesConfig(kind="quotient_remainder", operation="path", hidden=7))
    )
    assert isinstance(stacked[1], StackedEmbeddingBagConfig)
    assert stacked[1].operation == Path(hidden=7)


def test_the_rank_reaches_the_operation_and_falls_where_rows_are_few() -> None:
    ranks = []
    for max_rows in (0, 120):
        config = TablesConfig(
            kind="chinese_remainder", operation="tensor_train", partitions=3, rank=7, max_rows=max_rows
        )
        stacked = physical_configs(build_tables(TABLES, config))[2]
        assert isinstance(stacked, StackedEmbeddingBagConfig)
        assert isinstance(stacked.operation, TensorTrain)
        ranks.append(stacked.operation.rank)
    assert 0 < ranks[1] < ranks[0] == 7


def test_concat_halves_the_physical_dim() -> None:
    tables = build_tables(TABLES, TablesConfig(kind="quotient_remainder", operation="concat"))
    assert [table.embedding_dim for table in physical_configs(tables)] == [16, 8, 8]
    assert [table.embedding_dim for table in tables.embedding_bag_configs()] == [16, 16, 16]


def test_mixed_dims_fall_with_the_rows_of_the_tables_above_the_threshold() -> None:
    tables = build_tables(TABLES, TablesConfig(kind="mixed_dimension", alpha=0.5))
    assert isinstance(tables, MixedDimensionEmbeddingBagCollection)
    assert [table.embedding_dim for table in physical_configs(tables)] == [16, 16, 4]  # 16 * (900 / 10,000)^0.5 = 4.8


def test_mixed_dims_keep_a_budget() -> None:
    for budget, dims in ((900 * 16 + 10_000 * 8, [16, 16, 8]), (900 * 16 + 10_000 * 8 - 1, [16, 16, 4])):
        tables = build_tables(TABLES, TablesConfig(kind="mixed_dimension", budget=budget))
        assert [table.embedding_dim for table in physical_configs(tables)] == dims


def test_every_kind_builds_the_demo_and_criteo() -> None:
    for spec in (demo_spec(), criteo_kaggle_spec()):
        plain = sum(table.rows for table in spec.tables(dim=16))
        for kind in ("hash", "quotient_remainder", "mixed_radix", "chinese_remainder", "hot_cold", "hashes"):
            tables = [replace(table, by_frequency=True) for table in spec.tables(dim=16)]
            stored = physical_configs(build_tables(tables, TablesConfig(kind=kind, operation="add")))
            assert sum(table.num_embeddings for table in stored) < 0.35 * plain


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "qr"}, r"kind of tables must be one of \('plain', .*\): got 'qr'; name one of them"),
        ({"operation": "sum"}, r"operation of tables must be one of \('auto', .*\): got 'sum'; name one of them"),
        ({"kind": "hash", "collisions": 0}, r"collisions of hash tables must be at least 1: got 0; try 4"),
        ({"max_rows": 5}, r"max_rows must be 0 or more, and is for tables whose ids .*: got 5 for plain; leave"),
        ({"kind": "hot_cold", "collisions": 0}, r"collisions of hot_cold tables must be at least 1: got 0; try 4"),
        ({"kind": "hot_cold", "hot": 1.0}, r"hot must be a share between 0 and 1: got 1.0; try .5"),
        (
            {"kind": "hashes", "operation": "mult"},
            r"operation of several hashes must be add or concat, .*: got 'mult'; change it",
        ),
        (
            {"kind": "hot_cold", "operation": "tensor_train"},
            r"operation of hot_cold tables must be no tensor_train, .*: got 'tensor_train'; use mixed_radix tables",
        ),
        (
            {"kind": "clusters"},
            r"clusters tables must have assignments: got none; name the folder that recipes/cluster",
        ),
        ({"assignments": "a"}, r"assignments must be for clusters tables: got 'a' for plain; set kind to clusters, or"),
        ({"budget": 5}, r"budget must be 0 or more, and is for mixed_dimension tables: got 5 for plain; use coll"),
        ({"data_type": "int8"}, r"data_type of tables must be one of \('fp32', 'fp16'\): got 'int8'; name one of them"),
        (
            {"kind": "mixed_dimension", "file": "t.json"},
            r"a file of single tables must not be given for mixed_dimension, .*: got 't.json'; leave one",
        ),
        ({"collisions": -1}, r"collisions of plain tables must be at least 0: got -1; try 4"),
    ],
)
def test_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TablesConfig(**options)


def test_dims_that_do_not_divide_for_concat() -> None:
    with pytest.raises(
        ValueError, match=r"dim of table 't900' must be a multiple of 3, its number of partitions, for concat"
    ):
        build_tables(TABLES, TablesConfig(kind="mixed_radix", partitions=3, operation="concat"))


@pytest.mark.parametrize("kind", ["plain", "quotient_remainder", "mixed_dimension"])
def test_weights_are_of_the_data_type(kind: TablesKind) -> None:
    types: dict[DataTypeName, DataType] = {"fp32": DataType.FP32, "fp16": DataType.FP16}
    for data_type, expected in types.items():
        config = TablesConfig(kind=kind, data_type=data_type)
        assert {table.data_type for table in physical_configs(build_tables(TABLES, config))} == {expected}


@pytest.mark.parametrize(
    "kind", ["hash", "quotient_remainder", "mixed_radix", "chinese_remainder", "hot_cold", "hashes"]
)
@pytest.mark.parametrize("max_rows", [1000, 317])
def test_any_compressed_table_fits_its_rows(kind: TablesKind, max_rows: int) -> None:
    operations: tuple[OperationName, ...] = ("add", "concat")
    for tail, operation in product(get_args(Tail), operations):
        if (tail, operation) == ("hashes", "add") and kind == "hot_cold":
            continue
        config = TablesConfig(kind=kind, max_rows=max_rows, tail=tail, operation=operation, partitions=4)
        partition = partition_of(config, 10_000)
        rows = StackedRows(partition, (1,) * len(partition.classes)).rows
        assert 0.75 * max_rows <= rows <= max_rows


def test_hot_ids_keep_their_rows_and_the_others_share() -> None:
    config = TablesConfig(kind="hot_cold", collisions=10, hot=0.3, tail="chinese_remainder")
    partition = partition_of(config, 10_000)
    (first, *later) = partition.of(torch.arange(10_000))
    assert torch.equal(first[:300], torch.arange(300))
    assert all((classes[:300] == 0).all() for classes in later)
    assert len(torch.stack([first, *later]).unique(dim=1).T) == 10_000
    assert sum(partition.classes) <= 1000


def test_a_file_stores_single_tables_otherwise(tmp_path: FilePath) -> None:
    path, default = str(tmp_path / "tables.json"), TablesConfig(data_type="fp16")
    own = {
        "t900": replace(default, kind="chinese_remainder", collisions=3, partitions=3),
        "t10000": replace(default, kind="quotient_remainder", collisions=100, operation="add"),
    }
    write_tables(path, own, default)
    assert read_tables(path, default) == own
    assert rows(replace(default, file=path)) == [50, sum(partition_of(own["t900"], 900).classes), 100 + 100]
    assert rows(replace(default, file=path, kind="hash", threshold=20)) == [13, *rows(replace(default, file=path))[1:]]
    write_tables(path, {"t900": default}, default)
    assert type(build_tables(TABLES, replace(default, file=path))) is EmbeddingBagCollection


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '{"t7": {"kind": "hash"}}',
            r"tables in .*json must be tables of this data set: got \['t7'\]; fit them again for this data set",
        ),
        (
            '{"t900": {"strength": 2}}',
            r"must map names to fields of --tables: got fields \['strength'\], but only",
        ),
        (
            '{"t900": {"kind": "mixed_dimension"}}',
            r"got a mixed_dimension table, whose dim depends on the other tables; wri",
        ),
        ('{"t900": {"collisions": -1}}', r"got collisions of plain tables must be at least 0: got -1; try 4; write it"),
        ('["t900"]', r"must map names to fields of --tables: got .*; write it with recipes/plan_sharding.py --fit"),
        ("{", r"must map names to fields of --tables: got .*; write it with recipes/plan_sharding.py --fit"),
    ],
)
def test_files_that_are_refused(tmp_path: FilePath, text: str, message: str) -> None:
    (tmp_path / "tables.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        build_tables(TABLES, TablesConfig(file=str(tmp_path / "tables.json")))


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(
        ValueError, match=r"tables in /nowhere.json must map names to fields of --tables: got .*No such"
    ):
        build_tables(TABLES, TablesConfig(file="/nowhere.json"))


@pytest.mark.parametrize("kind", ["plain", "hash", "mixed_dimension"])
@pytest.mark.parametrize("weighted", [False, True])
def test_tables_of_ids_with_weights(kind: TablesKind, weighted: bool) -> None:
    tables = [replace(table, weighted=weighted) for table in TABLES]
    assert build_tables(tables, TablesConfig(kind=kind)).is_weighted() is weighted


def test_own_dims_are_kept_and_mapped_to_the_models() -> None:
    tables = [replace(TABLES[0], model_dim=TABLES[0].dim), *(replace(t, dim=4, model_dim=t.dim) for t in TABLES[1:])]
    for kind in ("plain", "mixed_dimension"):
        built = build_tables(tables, TablesConfig(kind=kind))
        assert [config.embedding_dim for config in physical_configs(built)] == [TABLES[0].dim, 4, 4]
        assert {config.embedding_dim for config in built.embedding_bag_configs()} == {TABLES[0].dim}


@pytest.mark.parametrize(
    ("dim", "config", "message"),
    [
        (
            6,
            TablesConfig(),
            r"dim of features \['.*'\] must be a multiple of 4, .*, and at most the model's dim 12: got 6;",
        ),
        (
            16,
            TablesConfig(),
            r"dim of features \['.*'\] must be a multiple of 4, .*, and at most the model's dim 12: got 16",
        ),
        (
            4,
            TablesConfig(kind="hash"),
            r"features \['.*'\] must have the model's dim 12 if tables are hash: got 4; leave",
        ),
    ],
)
def test_own_dims_that_are_refused(dim: int, config: TablesConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_tables([replace(table, dim=dim, model_dim=12) for table in TABLES], config)
