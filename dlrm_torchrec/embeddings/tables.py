"""The embedding tables of a data set, stored in the way that a recipe's config asks for."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from typing import Any, TypeAlias

import torch
from iopath.common.file_io import g_pathmgr
from torch import nn
from torchrec.modules.embedding_configs import BaseEmbeddingConfig, DataType, EmbeddingBagConfig, EmbeddingConfig
from torchrec.modules.embedding_modules import (
    EmbeddingBagCollection,
    EmbeddingBagCollectionInterface,
    EmbeddingCollection,
)

from dlrm_torchrec.embeddings.assignments import check_assignments, read_assignment
from dlrm_torchrec.embeddings.compositional.collection import CompositionalEmbeddingBagCollection
from dlrm_torchrec.embeddings.compositional.operations import Add, Concat, FeatureGeneration, Mult, Operation, Path
from dlrm_torchrec.embeddings.compositional.partitions.arithmetic import Hash
from dlrm_torchrec.embeddings.compositional.partitions.base import Partition
from dlrm_torchrec.embeddings.compositional.partitions.hashes import Hashes
from dlrm_torchrec.embeddings.compositional.partitions.hot_cold import HotCold
from dlrm_torchrec.embeddings.compositional.partitions.renumbered import Renumbered
from dlrm_torchrec.embeddings.compositional.partitions.sizes import (
    chinese_remainder_for_collisions,
    chinese_remainder_for_rows,
    fewest_moduli,
    fewest_radices,
    hash_for_collisions,
    hash_for_rows,
    hot_cold_for_rows,
    mixed_radix_for_collisions,
    mixed_radix_for_rows,
    optimal_chinese_remainder,
    optimal_mixed_radix,
    quotient_remainder_for_collisions,
    quotient_remainder_for_rows,
)
from dlrm_torchrec.embeddings.compositional.sequences import CompositionalEmbeddingCollection
from dlrm_torchrec.embeddings.compositional.table_configs import (
    CompositionalEmbeddingBagConfig,
    CompositionalEmbeddingConfig,
    StackedTable,
)
from dlrm_torchrec.embeddings.compositional.tensor_train import TensorTrain, tensor_train_for_rows
from dlrm_torchrec.embeddings.config import OperationName, TablesConfig
from dlrm_torchrec.embeddings.frequent_ids import frequent_ids
from dlrm_torchrec.embeddings.managed.buckets import whole_buckets
from dlrm_torchrec.embeddings.managed.collection import ManagedEmbeddingBagCollection
from dlrm_torchrec.embeddings.managed.table_configs import ManagedEmbeddingBagConfig, Rules
from dlrm_torchrec.embeddings.mixed_dimensions import MixedDimensionEmbeddingBagCollection, power_rule_dims
from dlrm_torchrec.schema import MANAGED_IDS, Table

Tables: TypeAlias = EmbeddingBagCollection | MixedDimensionEmbeddingBagCollection


def build_tables(
    tables: Sequence[Table], config: TablesConfig | None = None, dense_device: torch.device | None = None
) -> Tables:
    """Sum-pooled tables that hold no memory until they are sharded; without ``config``, all tables are plain.

    ``dense_device`` is the device of the projections of mixed dims, which are not sharded. Raises ValueError when a
    table has a dim of its own that is not possible.
    """
    config, meta = config or TablesConfig(), torch.device("meta")
    weighted = any(table.weighted for table in tables)
    if config.kind == "mixed_dimension" or any(_narrow(table) for table in tables):
        return _mixed(tables, config, dense_device, weighted=weighted)
    own = _own_configs(tables, config)
    stored = [stored_config(table, own[table.name]) for table in tables]
    if any(isinstance(each, ManagedEmbeddingBagConfig) for each in stored):
        return ManagedEmbeddingBagCollection(stored, is_weighted=weighted, device=meta)
    if any(isinstance(each, CompositionalEmbeddingBagConfig) for each in stored):
        return CompositionalEmbeddingBagCollection(stored, is_weighted=weighted, device=meta)
    return EmbeddingBagCollection(device=meta, tables=stored, is_weighted=weighted)


def build_sequence_tables(tables: Sequence[Table], config: TablesConfig | None = None) -> EmbeddingCollection:
    """Tables that give one vector for each id, and hold no memory until they are sharded; see ``build_tables``.

    Raises ValueError for tables of several dims, or that do not give one vector of the model's dim.
    """
    config, meta = config or TablesConfig(), torch.device("meta")
    dims = sorted({dim for table in tables for dim in (table.dim, table.model_dim or table.dim)})
    if len(dims) > 1 or config.kind == "mixed_dimension":
        raise ValueError(
            f"tables of sequences must have one dim: got {dims} in {config.kind} tables; make them equal, and use "
            "another kind to shrink them"
        )
    own = _own_configs(tables, config)
    stored = [stored_sequence_config(table, own[table.name]) for table in tables]
    if any(isinstance(each, CompositionalEmbeddingConfig) for each in stored):
        return CompositionalEmbeddingCollection(stored, device=meta)
    return EmbeddingCollection(device=meta, tables=stored)


def _own_configs(tables: Sequence[Table], config: TablesConfig) -> dict[str, TablesConfig]:
    """How each table is stored; raises ValueError when files name tables that do not exist."""
    own = read_tables(config.file, config) if config.file else {}
    names = [table.name for table in tables]
    unknown = sorted(own.keys() - set(names))
    if unknown:
        raise ValueError(
            f"tables in {config.file} must be tables of this data set: got {unknown}; fit them again for this data set"
        )
    if config.assignments:
        check_assignments(config.assignments, names)
    return dict.fromkeys(names, config) | own


def stored_config(table: Table, config: TablesConfig) -> EmbeddingBagConfig:
    """The config of one pooled table: managed, compositional if ``composition_of`` finds what it is made of, or plain.

    Raises ValueError for a kind that cannot have ids without end.
    """
    _check_managed(table, config)
    plain = _plain(table, config)
    if is_managed(table, config):
        wanted = config.max_rows or -(-table.rows // config.collisions)
        wanted = min(table.rows, config.max_rows or table.rows) if table.managed else wanted
        return ManagedEmbeddingBagConfig(
            **plain | {"num_embeddings": whole_buckets(max(2, wanted))},
            num_ids=MANAGED_IDS if table.managed else table.rows,
            rules=Rules(**{field.name: getattr(config, field.name) for field in fields(Rules)}),
        )
    composition = composition_of(table, config)
    if composition is None:
        return EmbeddingBagConfig(**plain)
    partition, operation = composition
    return CompositionalEmbeddingBagConfig(
        **plain | {"num_embeddings": partition.num_ids}, partition=partition, operation=operation
    )


def stored_sequence_config(table: Table, config: TablesConfig) -> EmbeddingConfig:
    """The config of one table that gives a vector for each id, likewise."""
    if table.managed or config.kind == "managed":
        raise ValueError(
            f"table {table.name!r} of a sequence must have a number of ids: got managed ids; hash them, or number them "
            "by a vocabulary"
        )
    composition = composition_of(table, config)
    if composition is None:
        return EmbeddingConfig(**_plain(table, config))
    partition, operation = composition
    return CompositionalEmbeddingConfig(**_plain(table, config), partition=partition, operation=operation)


def _plain(table: Table, config: TablesConfig) -> dict[str, Any]:
    """What the configs of all tables have in common."""
    return {
        "name": table.name,
        "num_embeddings": table.rows,
        "embedding_dim": table.dim,
        "feature_names": list(table.features),
        "data_type": DataType[config.data_type.upper()],
    }


def is_managed(table: Table, config: TablesConfig) -> bool:
    """Whether the table gives its rows to ids as it meets them."""
    if table.managed:
        return config.kind in ("plain", "managed")
    return config.kind == "managed" and table.rows > config.threshold


def _check_managed(table: Table, config: TablesConfig) -> None:
    if table.managed and config.kind not in ("plain", "managed", "hash", "hashes"):
        raise ValueError(
            f"table {table.name!r}, whose ids have no end, must be managed or hashed: got {config.kind}; choose "
            "managed, hash or hashes"
        )


def composition_of(table: Table, config: TablesConfig) -> tuple[Partition, Operation] | None:
    """What a table with more rows than the threshold, or a clusters table that has codes, is made of; else None."""
    operation = operation_of(config)
    if config.kind == "clusters":
        assignment = read_assignment(config.assignments, table.name, table.rows)
        return None if assignment is None else (assignment.partition, operation)
    if table.managed and config.kind in ("hash", "hashes"):
        return _hashed(table, config), operation
    if config.kind in ("plain", "managed") or table.rows <= config.threshold:
        return None
    if isinstance(operation, TensorTrain) and config.max_rows:
        return _tensor_train(config, table)
    return _hot_cold(config, table) if config.kind == "hot_cold" else partition_of(config, table.rows), operation


def _hashed(table: Table, config: TablesConfig) -> Partition:
    """Hashes of ids without end into the table's rows."""
    rows = min(table.rows, config.max_rows or table.rows)
    return Hash(MANAGED_IDS, rows) if config.kind == "hash" else Hashes(MANAGED_IDS, rows, config.partitions)


def _hot_cold(config: TablesConfig, table: Table) -> Partition:
    """The partition of a hot_cold table, whose frequent ids are the first ones, or those that a file lists."""
    partition = partition_of(config, table.rows)
    if table.by_frequency:
        return partition
    if not config.frequent:
        raise ValueError(
            f"ids of hot_cold table {table.name!r} must be in order of frequency, as a vocabulary's, or have a list of "
            "the frequent ones: got neither; count them with python -m dlrm_torchrec.datasets.profile, and name its "
            "file in --tables.frequent"
        )
    assert isinstance(partition, HotCold)
    listed = frequent_ids(config.frequent, table.name, rows=table.rows, count=partition.num_hot)
    return Renumbered(partition_of(config, table.rows + partition.num_hot), listed)


def _tensor_train(config: TablesConfig, table: Table) -> tuple[Partition, TensorTrain]:
    """The partition and the operation of a tensor train of at most ``max_rows`` rows, its cores included."""
    unlimited = replace(config, max_rows=0, partitions=config.partitions or 3)
    return tensor_train_for_rows(
        lambda collisions: partition_of(replace(unlimited, collisions=collisions), table.rows),
        table.dim,
        max_rows=config.max_rows,
        rank=config.rank,
    )


def partition_of(config: TablesConfig, rows: int) -> Partition:
    """The partition of a table of ``rows`` ids; raises ValueError when it cannot have as few rows as ``config`` says.

    A hot_cold table has ceil(rows / collisions) rows, and several hashes that many rows in common.
    """
    limit, k = config.max_rows, config.partitions or 2
    shared = limit or -(-rows // max(config.collisions, 1))
    match config.kind:
        case "hash":
            return hash_for_rows(rows, limit) if limit else hash_for_collisions(rows, config.collisions)
        case "hashes":
            return Hashes(rows, min(shared, rows), k)
        case "hot_cold":
            own_in_all = config.combination in ("concat", "feature_generation")
            hashes = {"hash": 1, "hashes": k, "chinese_remainder": 0}[config.tail]
            return hot_cold_for_rows(rows, shared, hot=config.hot, hashes=hashes, own_in_all=own_in_all)
        case "chinese_remainder":
            if limit:
                return chinese_remainder_for_rows(rows, limit, k=config.partitions or fewest_moduli(rows, limit))
            if config.collisions:
                return chinese_remainder_for_collisions(rows, config.collisions, k=k)
            return optimal_chinese_remainder(rows, k)
        case "mixed_radix":
            if limit:
                return mixed_radix_for_rows(rows, limit, k=config.partitions or fewest_radices(rows, limit))
            if config.collisions:
                return mixed_radix_for_collisions(rows, config.collisions, k=k)
            return optimal_mixed_radix(rows, k)
    if limit:
        return quotient_remainder_for_rows(rows, limit)
    return quotient_remainder_for_collisions(rows, config.collisions or optimal_mixed_radix(rows, 2).radices[1])


def operation_of(config: TablesConfig) -> Operation:
    """The operation that computes one vector from an id's rows; a hashed id has only one row."""
    if config.kind == "hash" or (config.kind == "hot_cold" and config.tail == "hash"):
        return Add()
    operations: dict[OperationName, Operation] = {
        "concat": Concat(),
        "add": Add(),
        "mult": Mult(),
        "path": Path(hidden=config.hidden),
        "tensor_train": TensorTrain(rank=config.rank),
        "feature_generation": FeatureGeneration(),
    }
    return operations[config.combination]


def _mixed(
    tables: Sequence[Table], config: TablesConfig, dense_device: torch.device | None, *, weighted: bool
) -> Tables:
    """Tables of mixed dims, or plain tables if all dims are equal.

    A table's own dim goes before the rule, which is for the others with more rows than the threshold.
    """
    meta, common = torch.device("meta"), tables[0].model_dim or tables[0].dim
    endless = [table.name for table in tables if table.managed]
    if endless:
        raise ValueError(
            f"tables of mixed dims must have a row for each id: got {endless}, whose ids have no end; leave out dims "
            "of their own, or hash these columns"
        )
    for table in tables:
        _check_dim(table, config, common)
    stored = [stored_config(table, TablesConfig(data_type=config.data_type)) for table in tables]
    if config.kind == "mixed_dimension":
        pairs = zip(tables, stored, strict=True)
        large = [plain for table, plain in pairs if not _narrow(table) and table.rows > config.threshold]
        rows = [plain.num_embeddings for plain in large]
        budget = config.budget or None
        dims = power_rule_dims(rows, base_dim=common, alpha=config.alpha, budget=budget) if large else []
        for plain, dim in zip(large, dims, strict=True):
            plain.embedding_dim = dim
    if all(plain.embedding_dim == common for plain in stored):
        return EmbeddingBagCollection(device=meta, tables=stored, is_weighted=weighted)
    return MixedDimensionEmbeddingBagCollection(
        stored, common, is_weighted=weighted, device=meta, dense_device=dense_device
    )


def _narrow(table: Table) -> bool:
    """Whether the table's rows have another dim than the vectors that the model gets."""
    return table.model_dim not in (0, table.dim)


def _check_dim(table: Table, config: TablesConfig, common: int) -> None:
    if not _narrow(table):
        return
    features = list(table.features)
    if table.dim % 4 or table.dim > common:
        raise ValueError(
            f"dim of features {features} must be a multiple of 4, for FBGEMM's kernels, and at most the model's dim "
            f"{common}: got {table.dim}; change it in the spec, or widen the model"
        )
    if config.file or config.kind not in ("plain", "mixed_dimension"):
        kind = f"those of {config.file}" if config.file else config.kind
        raise ValueError(
            f"features {features} must have the model's dim {common} if tables are {kind}: got {table.dim}; leave out "
            "'dim' in the spec, or keep tables plain"
        )


def write_tables(path: str, tables: Mapping[str, TablesConfig], default: TablesConfig) -> None:
    """Write a file for ``--tables.file``: for each table, the fields of its config that differ from ``default``."""
    base = asdict(default)
    changed = {
        name: {field: value for field, value in asdict(config).items() if value != base[field]}
        for name, config in tables.items()
    }
    with g_pathmgr.open(path, "w") as stream:
        json.dump(changed, stream, indent=1)
        stream.write("\n")


def read_tables(path: str, default: TablesConfig) -> dict[str, TablesConfig]:
    """Configs by table name: ``default`` with the fields that ``write_tables`` wrote for the table.

    Raises ValueError when the file is not such a mapping.
    """
    allowed = {field.name for field in fields(TablesConfig)} - {"file", "alpha", "budget"}
    try:
        with g_pathmgr.open(path, "r") as stream:
            tables: dict[str, dict[str, Any]] = json.load(stream)
        unknown = sorted({field for own in tables.values() for field in own} - allowed)
        if unknown:
            raise ValueError(f"fields {unknown}, but only {sorted(allowed)} are allowed")
        read = {name: replace(default, file="", **own) for name, own in tables.items()}
        if any(config.kind == "mixed_dimension" for config in read.values()):
            raise ValueError("a mixed_dimension table, whose dim depends on the other tables")
        return read
    except (OSError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            f"tables in {path} must map names to fields of --tables: got {error}; write it with "
            "recipes/plan_sharding.py --fit"
        ) from error


def model_configs(tables: nn.Module) -> list[BaseEmbeddingConfig]:
    """The configs of all tables in ``tables``, a collection or a module with several, as a model sees them."""
    if isinstance(tables, EmbeddingBagCollectionInterface):
        return list(tables.embedding_bag_configs())
    if isinstance(tables, EmbeddingCollection):
        return list(tables.embedding_configs())
    return [config for child in tables.children() for config in model_configs(child)]


def physical_configs(tables: nn.Module) -> list[BaseEmbeddingConfig]:
    """The configs of all tables in ``tables``, likewise, as they are stored and sharded; the planner counts these."""
    configs: list[BaseEmbeddingConfig] = []
    for module in tables.modules():
        if isinstance(module, (CompositionalEmbeddingBagCollection, CompositionalEmbeddingCollection)):
            configs += module.physical_configs()
        elif isinstance(module, EmbeddingBagCollection):
            configs += module.embedding_bag_configs()
        elif isinstance(module, EmbeddingCollection):
            configs += module.embedding_configs()
    return configs


def bytes_of_ids(config: BaseEmbeddingConfig) -> int:
    """Bytes that a stored table has besides its weights: the listed classes of ids, or the map of managed ones."""
    if isinstance(config, ManagedEmbeddingBagConfig):
        return config.map_bytes()
    return config.stack.partition.listed_bytes if isinstance(config, StackedTable) else 0
