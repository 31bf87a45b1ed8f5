"""Embedding tables of a data set, on the meta device."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from dlrm_torchrec.schema import Table


def build_tables(tables: Iterable[Table]) -> EmbeddingBagCollection:
    """Sum-pooled tables that hold no memory until they are sharded."""
    return EmbeddingBagCollection(
        device=torch.device("meta"),
        tables=[
            EmbeddingBagConfig(
                name=table.name,
                num_embeddings=table.rows,
                embedding_dim=table.dim,
                feature_names=list(table.features),
            )
            for table in tables
        ],
    )
