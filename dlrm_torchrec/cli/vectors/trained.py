"""Vectors of a checkpoint, composed of its stored rows as the model composes them, without a model or ranks."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from iopath.common.file_io import g_pathmgr
from torch import nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrm_torchrec.embeddings.compositional.collection import CompositionalEmbeddingBagCollection
from dlrm_torchrec.embeddings.compositional.table_configs import CompositionalEmbeddingBagConfig
from dlrm_torchrec.embeddings.config import TablesConfig
from dlrm_torchrec.embeddings.managed.collection import ManagedEmbeddingBagCollection
from dlrm_torchrec.embeddings.managed.table_configs import ManagedEmbeddingBagConfig
from dlrm_torchrec.embeddings.tables import partition_of, read_tables, stored_config
from dlrm_torchrec.recipe import restore
from dlrm_torchrec.schema import DatasetSpec, SparseFeature, Table
from dlrm_torchrec.train.checkpoints.storage import IoPathReader
from dlrm_torchrec.train.checkpoints.tables import SavedTable, read_map, read_table, saved_tables


def trained_data(run: str) -> str:
    """The prepared folder that a run was trained on, or ``synthetic``; empty when the run does not say."""
    path = f"{run}/config.json"
    if not g_pathmgr.exists(path):
        return ""
    with g_pathmgr.open(path, "rb") as stream:
        return str(json.loads(stream.read()).get("data", ""))


def open_checkpoint(
    path: str, spec: DatasetSpec, feature: SparseFeature, tables: Mapping[str, Any]
) -> Callable[[torch.Tensor], torch.Tensor]:
    """A function from ids (N,) to the vectors (N, D) of a feature in the checkpoint in folder ``path``.

    ``tables`` is the run's TablesConfig as JSON. The memory holds the feature's table as it is stored, whatever ranks
    trained it. Raises ValueError when the checkpoint is damaged or has no table of the feature.
    """
    table = next(table for table in spec.tables(dim=1) if feature.name in table.features)
    saved = {each.name: each for each in saved_tables(path)}
    if table.name not in saved:
        raise ValueError(
            f"feature must have a table in {path}: got {feature.name!r}, whose {table.name} is none of "
            f"{', '.join(saved)}; name another feature"
        )
    stored = saved[table.name]
    config = _config(replace(table, features=(feature.name,)), stored, restore(TablesConfig, dict(tables)))
    kind = (
        ManagedEmbeddingBagCollection
        if isinstance(config, ManagedEmbeddingBagConfig)
        else CompositionalEmbeddingBagCollection
    )
    collection = kind([config], device=torch.device("meta")).eval()
    weight = read_table(path, stored).float()  # rows of 16 bits are multiplied as numbers of 32, as in training
    collection.embedding_bags[table.name].weight = nn.Parameter(weight, requires_grad=False)
    if isinstance(collection, ManagedEmbeddingBagCollection):
        collection.maps[table.name].load_state_dict(read_map(path, stored), assign=True)
    projection = _projection(path, table.name)

    def read(ids: torch.Tensor) -> torch.Tensor:
        one_each = KeyedJaggedTensor([feature.name], ids, lengths=torch.ones_like(ids))
        with torch.inference_mode():
            vectors: torch.Tensor = collection(one_each).values()
            return vectors if projection is None else vectors @ projection.T

    return read


def _config(table: Table, saved: SavedTable, tables: TablesConfig) -> EmbeddingBagConfig:
    """How the table is stored; a recipe's width of tables is told from the shape of what it ``saved``."""
    own = read_tables(tables.file, tables).get(table.name, tables) if tables.file else tables
    if own.kind == "mixed_dimension":
        own = TablesConfig(data_type=own.data_type)
    plain = own.kind in ("plain", "managed") or table.rows <= own.threshold
    pieces = 1 if plain else len(partition_of(own, table.rows).classes)
    for dim in (saved.dim * pieces, saved.dim):  # only concat has rows that are pieces of a vector
        config = stored_config(replace(table, dim=dim), own)
        physical = config.stacked() if isinstance(config, CompositionalEmbeddingBagConfig) else config
        if (physical.num_embeddings, physical.embedding_dim) == (saved.rows, saved.dim):
            return config
    raise ValueError(
        f"table {table.name} must be stored as the run's tables say: got {saved.rows} rows of {saved.dim} numbers for "
        f"{table.rows} ids and {own.kind}; restore the file of --tables.file that the run was trained with"
    )


def _projection(path: str, table: str) -> torch.Tensor | None:
    """The matrix (D, dim) that maps rows of a mixed dim to vectors of the model's; None when there is none."""
    for key, described in IoPathReader(path).read_metadata().state_dict_metadata.items():
        if key.startswith("model.") and key.endswith(f"projections.{table}.weight"):
            saved: Any = described  # always a tensor: see storage
            rows, dim = saved.size
            return read_table(path, SavedTable(table, rows, dim, saved.properties.dtype, key))
    return None
