"""Kernels that compose the vectors of compositional tables on the rank that owns them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torchrec.distributed.batched_embedding_kernel import BatchedDenseEmbeddingBag, BatchedFusedEmbeddingBag
from torchrec.distributed.embedding_lookup import GroupedPooledEmbeddingsLookup
from torchrec.distributed.embedding_types import EmbeddingComputeKernel, GroupedEmbeddingConfig
from torchrec.modules.embedding_configs import EmbeddingTableConfig, PoolingType
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrm_torchrec.embeddings.compositional.bags import Bags, offsets_of
from dlrm_torchrec.embeddings.compositional.pooling import pool_ids
from dlrm_torchrec.embeddings.compositional.table_configs import StackedEmbeddingBagConfig


class CompositionalLookup(GroupedPooledEmbeddingsLookup):
    """TorchRec's lookup with one composing kernel for each compositional table in ``stacked``, which maps names."""

    def __init__(self, stacked: dict[str, StackedEmbeddingBagConfig], *args: Any, **kwargs: Any) -> None:
        self._stacked = stacked  # before TorchRec's __init__, which creates the kernels
        super().__init__(*args, **kwargs)
        self._feature_splits = [
            sum(len(sources(table, stacked)) for table in config.embedding_tables) for config in self.grouped_configs
        ]

    def _create_embedding_kernel(self, config: GroupedEmbeddingConfig, *args: Any, **kwargs: Any) -> torch.nn.Module:
        stacked = self._stacked.get(config.embedding_tables[0].name)
        if stacked is None:
            kernel: torch.nn.Module = super()._create_embedding_kernel(config, *args, **kwargs)
            return kernel
        device, pg = args[0], args[1]
        if config.compute_kernel == EmbeddingComputeKernel.DENSE:
            return ComposedDenseEmbeddingBag(stacked, _one_feature(config), pg, device)
        return ComposedFusedEmbeddingBag(stacked, _one_feature(config), pg, device)


def sources(table: EmbeddingTableConfig, stacked: dict[str, StackedEmbeddingBagConfig]) -> list[str]:
    """The features whose ids ``table`` looks up; a compositional table may have several outputs for each feature."""
    config = stacked.get(table.name)
    return list(table.feature_names if config is None else config.logical.feature_names)


def _one_feature(config: GroupedEmbeddingConfig) -> GroupedEmbeddingConfig:
    """The kernel's config for the shards of one table: it sums any bags, no matter which feature they come from."""
    tables = [
        replace(table, feature_names=table.feature_names[:1], embedding_names=table.embedding_names[:1])
        for table in config.embedding_tables
    ]
    return replace(config, embedding_tables=tables, pooling=PoolingType.SUM)


class _Composed:
    """``forward`` of a kernel that holds a whole table, or one or more of its column shards."""

    stacked: StackedEmbeddingBagConfig
    config: GroupedEmbeddingConfig
    emb_module: torch.nn.Module

    def forward(self, features: KeyedJaggedTensor) -> torch.Tensor:
        """Pooled vectors (B, sum over shards of features x outputs x columns); every shard gets the same ids."""
        num_features = len(self.stacked.logical.feature_names)
        columns = [table.local_cols for table in self.config.embedding_tables]
        if len(columns) > 1:
            features = features.split([num_features] * len(columns))[0]
        bags = Bags(features.values().long(), features.lengths().long(), features.weights_or_none())
        pooled = pool_ids(self.stacked, bags, self._sums)
        pooled = pooled.view(num_features, features.stride(), -1, sum(columns)).transpose(0, 1)
        if len(columns) == 1:
            return pooled.flatten(1)
        return torch.cat([shard.flatten(1) for shard in torch.split(pooled, columns, dim=3)], dim=1)

    def _sums(self, rows: torch.Tensor, offsets: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
        shards = len(self.config.embedding_tables)
        if shards > 1:
            lengths = offsets.diff().repeat(shards)
            rows, offsets = rows.repeat(shards), offsets_of(lengths)
            weights = None if weights is None else weights.repeat(shards)
        sums: torch.Tensor = self.emb_module(indices=rows, offsets=offsets, per_sample_weights=weights)
        return sums


class ComposedFusedEmbeddingBag(_Composed, BatchedFusedEmbeddingBag):
    """A composing kernel with the optimizer in backward."""

    def __init__(self, stacked: StackedEmbeddingBagConfig, *args: Any) -> None:
        super().__init__(*args)
        self.stacked = stacked


class ComposedDenseEmbeddingBag(_Composed, BatchedDenseEmbeddingBag):
    """A composing kernel with dense gradients, for data-parallel tables."""

    def __init__(self, stacked: StackedEmbeddingBagConfig, *args: Any) -> None:
        super().__init__(*args)
        self.stacked = stacked
