"""Reads the tables of a checkpoint as whole tensors, one at a time, without ranks or a model."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed.checkpoint as dcp

from dlrm_torchrec.train.checkpoints.folder import check
from dlrm_torchrec.train.checkpoints.storage import IoPathReader

_TABLE = re.compile(r"model\..*\.?embedding_bags\.(?P<table>[^.]+)\.weight")


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
        found = _TABLE.fullmatch(key)
        if found:
            described: Any = saved  # always a tensor: see storage
            rows, dim = described.size
            yield SavedTable(found["table"], rows, dim, described.properties.dtype, key)


def read_table(path: str, table: SavedTable) -> torch.Tensor:
    """The weights (rows, dim) of a table of the checkpoint in folder ``path``."""
    weights = torch.empty(table.rows, table.dim, dtype=table.dtype)
    dcp.load({table.key: weights}, storage_reader=IoPathReader(path), no_dist=True)
    return weights
