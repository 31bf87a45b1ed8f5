"""The vector of every id of a trained table, in whatever way it is stored, and the moments of its optimizer."""

from __future__ import annotations

from dataclasses import replace

import torch
from torchrec.modules.embedding_configs import EmbeddingBagConfig

from dlrm_torchrec.embeddings.compositional.bags import Bags
from dlrm_torchrec.embeddings.compositional.collection import LookUpIn
from dlrm_torchrec.embeddings.compositional.operations import Add
from dlrm_torchrec.embeddings.compositional.pooling import pool_ids
from dlrm_torchrec.embeddings.compositional.table_configs import (
    CompositionalEmbeddingBagConfig,
    StackedEmbeddingBagConfig,
)
from dlrm_torchrec.embeddings.config import TablesConfig
from dlrm_torchrec.embeddings.tables import composition_of, read_tables, stored_config
from dlrm_torchrec.schema import Table

_CHUNK = 1 << 18  # ids that are composed at once


def stored_as(table: Table, config: TablesConfig, row_dim: int) -> EmbeddingBagConfig:
    """How a run with this ``config`` stores ``table``, of which its checkpoint has rows of ``row_dim`` numbers.

    Raises ValueError for tables that give several vectors, or of mixed dims.
    """
    own = read_tables(config.file, config).get(table.name, config) if config.file else config
    if own.kind == "mixed_dimension" or own.combination == "feature_generation":
        raise ValueError(
            f"table {table.name!r} must give one vector of the model's dim: got {own.kind} tables with "
            f"{own.combination}; train it in another way"
        )
    composition = composition_of(table, own) if own.combination == "concat" else None
    parts = 1 if composition is None else len(composition[0].classes)
    stored = stored_config(replace(table, dim=row_dim * parts), own)
    return stored.stacked() if isinstance(stored, CompositionalEmbeddingBagConfig) else stored


def vectors_of(config: EmbeddingBagConfig, weight: torch.Tensor) -> torch.Tensor:
    """The vectors (ids, dim), float32, of all ids of a table whose stored rows are ``weight``."""
    if not isinstance(config, StackedEmbeddingBagConfig):
        return weight.float()
    rows, look_up = config.logical.num_embeddings, LookUpIn(weight.float())
    pieces = []
    with torch.no_grad():
        for first in range(0, rows, _CHUNK):
            ids = torch.arange(first, min(first + _CHUNK, rows))
            pieces.append(pool_ids(config, Bags(ids, torch.ones_like(ids), None), look_up))
    return torch.cat(pieces)


def moments_of(config: EmbeddingBagConfig, moments: torch.Tensor) -> torch.Tensor | None:
    """The moments (ids,) or (ids, dim) of all ids: those of its row, or the mean of those of the rows that are added.

    None for other operations, whose rows have gradients that are not the vector's.
    """
    if not isinstance(config, StackedEmbeddingBagConfig):
        return moments
    if not isinstance(config.operation, Add):
        return None
    means = vectors_of(config, moments.view(len(moments), -1)) / len(config.stack.sizes)
    return means.view(len(means), *moments.shape[1:])
