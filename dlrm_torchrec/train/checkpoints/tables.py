"""Reads the tables of a checkpoint as whole tensors, and what else it has, without ranks or a model."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from dlrm_torchrec.table_names import table_of
from dlrm_torchrec.train.checkpoints.folder import check
from dlrm_torchrec.train.checkpoints.storage import IoPathReader

_MAP = re.compile(r"model\..*\.?maps\.(?P<table>[^.]+)\.[a-z_]+")


@dataclass(frozen=True)
class SavedTable:
    """A table of a checkpoint: ``rows`` x ``dim``, sharded in any way."""

    name: str
    rows: int
    dim: int
    dtype: torch.dtype
    key: str  # its name in the checkpoint


def saved_tables(path: str) -> Iterator[SavedTable]:
    """The tables of the checkpoint in folder ``path``, once it is verified; ValueError when it is damaged.

    A compositional table has its partitions stacked, as stored.
    """
    check(path)
    for key, saved in IoPathReader(path).read_metadata().state_dict_metadata.items():
        table = table_of(key) if key.startswith("model.") else None
        if table is not None:
            described: Any = saved  # always a tensor: see storage
            rows, dim = described.size
            yield SavedTable(table, rows, dim, described.properties.dtype, key)


def read_table(path: str, table: SavedTable) -> torch.Tensor:
    """The weights (rows, dim) of a table of the checkpoint in folder ``path``."""
    weights = torch.empty(table.rows, table.dim, dtype=table.dtype)
    dcp.load({table.key: weights}, storage_reader=IoPathReader(path), no_dist=True)
    return weights


def read_moments(path: str, table: SavedTable) -> dict[str, torch.Tensor]:
    """The moments (rows,) or (rows, dim) of a table of the checkpoint in folder ``path``, by their names."""
    start = f"optimizer.{table.key.removeprefix('model.')}/{table.name}."
    saved = IoPathReader(path).read_metadata().state_dict_metadata
    return _read(path, {name: name.removeprefix(start) for name in saved if name.startswith(start)})


def read_map(path: str, table: SavedTable) -> dict[str, torch.Tensor]:
    """The map of a managed table of the checkpoint in folder ``path``, by the names of its tensors; else nothing."""
    start = f"{table.key.removesuffix(f'embedding_bags.{table.name}.weight')}maps.{table.name}."
    saved = IoPathReader(path).read_metadata().state_dict_metadata
    return _read(path, {name: name.removeprefix(start) for name in saved if name.startswith(start)})


def read_dense(path: str) -> dict[str, torch.Tensor]:
    """All parameters and buffers of the model that are no tables or maps of ids, by their names in it."""
    saved = IoPathReader(path).read_metadata().state_dict_metadata
    of_tables = {name for name in saved if table_of(name) is not None or _MAP.fullmatch(name)}
    names = [name for name in saved if name.startswith("model.") and name not in of_tables]
    return _read(path, {name: name.removeprefix("model.") for name in names})


def _read(path: str, names: Mapping[str, str]) -> dict[str, torch.Tensor]:
    """The tensors that have these names in the checkpoint, by new names."""
    saved = IoPathReader(path).read_metadata().state_dict_metadata
    tensors = {
        name: torch.empty(tuple(each.size), dtype=each.properties.dtype)
        for name, each in saved.items()
        if name in names and isinstance(each, TensorStorageMetadata)
    }
    dcp.load(tensors, storage_reader=IoPathReader(path), no_dist=True)
    return {names[name]: tensor for name, tensor in tensors.items()}
