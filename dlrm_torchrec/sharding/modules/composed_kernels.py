"""Kernels that compose the vectors of compositional tables on the rank that owns them."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import groupby
from typing import Any

import torch
import torch.distributed as dist
from fbgemm_gpu.split_table_batched_embeddings_ops_training import SplitTableBatchedEmbeddingBagsCodegen
from torchrec.distributed.batched_embedding_kernel import BatchedDenseEmbeddingBag, BatchedFusedEmbeddingBag
from torchrec.distributed.embedding_lookup import GroupedPooledEmbeddingsLookup
from torchrec.distributed.embedding_types import EmbeddingComputeKernel, GroupedEmbeddingConfig
from torchrec.modules.embedding_configs import PoolingType
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrm_torchrec.embeddings.compositional.bags import Bags
from dlrm_torchrec.embeddings.compositional.operations import Mult
from dlrm_torchrec.embeddings.compositional.pooling import pool_group
from dlrm_torchrec.embeddings.compositional.table_configs import StackedEmbeddingConfig, StackedTable
from dlrm_torchrec.embeddings.compositional.table_group import Member, TableGroup
from dlrm_torchrec.sharding.modules.one_table import read_as_one_table
from dlrm_torchrec.sharding.modules.products.products import Products, SingleProducts
from dlrm_torchrec.sharding.modules.rows_of_features import map_features, rows_of_features, sources
from dlrm_torchrec.sharding.modules.sorted_updates import SortedTables, can_sort, use_sorted_updates
from dlrm_torchrec.sharding.modules.spread_group import SpreadGroup

Stacked = dict[str, StackedTable]  # by the name of the table


class CompositionalLookup(GroupedPooledEmbeddingsLookup):
    """TorchRec's lookup for plain tables and the compositional ones in ``stacked``; each group has one kernel.

    Tables whose vectors are sums of rows are read by TorchRec's kernels, also together with plain tables, once their
    ids were turned into rows. Tables that multiply or pass rows on have a kernel of their own. Where the ranks
    ``spread_over`` share their rows, ids come as ordinals, and all these ranks must look up at the same time.
    """

    def __init__(
        self, stacked: Stacked, *args: Any, spread_over: dist.ProcessGroup | None = None, **kwargs: Any
    ) -> None:
        self._stacked, self._spread_over = stacked, spread_over  # before TorchRec's __init__ creates the kernels
        self.in_order = False  # whether kernels must run one after another, as they exchange rows with other ranks
        super().__init__(*args, **kwargs)
        self._feature_splits = [
            sum(len(sources(table, stacked)) for table in config.embedding_tables) for config in self.grouped_configs
        ]

    def inputs(self) -> list[tuple[str, int]]:
        """Each table, with how many features it is given, in the order of these features."""
        return [
            (table.name, len(sources(table, self._stacked)))
            for config in self.grouped_configs
            for table in config.embedding_tables
        ]

    def _create_embedding_kernel(self, config: GroupedEmbeddingConfig, *args: Any, **kwargs: Any) -> torch.nn.Module:
        kernel: torch.nn.Module
        configs = [self._stacked.get(table.name) for table in config.embedding_tables]
        if any(stacked is not None and not stacked.sums_rows for stacked in configs):
            device, pg = args[0], args[1]
            kernel = composed_kernel(
                [stacked for stacked in configs if stacked is not None], config, pg, device, self._spread_over
            )
            self.in_order |= self._spread_over is not None
        elif any(configs):
            # means come with the rows, as weights
            kernel = super()._create_embedding_kernel(replace(config, pooling=PoolingType.SUM), *args, **kwargs)
            tables = kernel.emb_module
            ours = isinstance(tables, SplitTableBatchedEmbeddingBagsCodegen) and can_sort(tables)
            if ours:
                use_sorted_updates(tables)  # FBGEMM's are slow where rows have weights
            rows = rows_of_features(config.embedding_tables, self._stacked, count=ours)
            kernel.register_forward_pre_hook(partial(map_features, rows))
        else:
            kernel = super()._create_embedding_kernel(config, *args, **kwargs)
        return kernel


def kernel_key(config: StackedTable, compute_kernel: str) -> str | None:
    """What compositional tables must have in common to share a kernel; None if they share it with plain tables."""
    if config.sums_rows:
        return "rows, mean" if config.pooling is PoolingType.MEAN else None
    return f"{config.operation}, {len(config.stack.sizes)} rows of {config.embedding_dim}, {compute_kernel}"


def equal_widths(config: GroupedEmbeddingConfig, stacked: Stacked) -> list[GroupedEmbeddingConfig]:
    """The config in pieces whose composing kernels have columns of one width."""
    first = stacked.get(config.embedding_tables[0].name)
    if first is None or first.sums_rows:
        return [config]
    runs = groupby(config.embedding_tables, key=lambda table: table.local_cols)
    return [replace(config, embedding_tables=list(run)) for _, run in runs]


class _Composed:
    """``forward`` of a kernel that holds whole tables, or column shards of equal widths, of one operation."""

    group: TableGroup
    like: StackedTable
    emb_module: torch.nn.Module
    products: Products | None = None

    def forward(self, features: KeyedJaggedTensor) -> torch.Tensor:
        """Pooled vectors (B, features x columns), the features of one table or shard after another's.

        Tables of unpooled vectors give one vector (N, columns) for each id.
        """
        bags = Bags(
            features.values().long(),
            features.lengths().long(),
            features.weights_or_none(),
            features.length_per_key(),
        )
        products, weights = self._products(), bags.weights
        if products is not None and (weights is None or not weights.requires_grad):
            return products(bags)
        if isinstance(self.like, StackedEmbeddingConfig):
            return self.like.operation.vectors(self.group, bags, self._sums)
        pooled = pool_group(self.group, self.like, bags, self._sums)
        return pooled.view(self.group.num_features, features.stride(), -1).transpose(0, 1).flatten(1)

    def _products(self) -> Products | None:
        """Faster products, where the tables are updated by kernels of our own."""
        tables = self.emb_module.forward
        whole = not isinstance(self.group, SpreadGroup)
        if not whole or not isinstance(tables, SortedTables) or not isinstance(self.like.operation, Mult):
            return None
        if self.products is None or self.products.tables is not tables:
            single = isinstance(self.like, StackedEmbeddingConfig)
            mean = not single and self.like.pooling is PoolingType.MEAN
            self.products = SingleProducts(self.group, tables) if single else Products(self.group, tables, mean=mean)
        return self.products

    def _sums(self, rows: torch.Tensor, offsets: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
        sums: torch.Tensor = self.emb_module(indices=rows, offsets=offsets, per_sample_weights=weights)
        return sums

    def _compose(self, configs: list[StackedTable]) -> None:
        members = [Member(config.name, tuple(config.logical.feature_names), config.stack) for config in configs]
        self.group, self.like = TableGroup(members), configs[0]
        read_as_one_table(self.emb_module)
        if isinstance(self.emb_module, SplitTableBatchedEmbeddingBagsCodegen) and can_sort(self.emb_module):
            use_sorted_updates(self.emb_module)


class ComposedFusedEmbeddingBag(_Composed, BatchedFusedEmbeddingBag):
    """A composing kernel with the optimizer in backward."""

    def __init__(self, configs: list[StackedTable], config: GroupedEmbeddingConfig, *args: Any) -> None:
        super().__init__(_one_feature_each(config), *args)
        self._compose(configs)


class ComposedDenseEmbeddingBag(_Composed, BatchedDenseEmbeddingBag):
    """A composing kernel with dense gradients, for data-parallel tables."""

    def __init__(self, configs: list[StackedTable], config: GroupedEmbeddingConfig, *args: Any) -> None:
        super().__init__(_one_feature_each(config), *args)
        self._compose(configs)


def composed_kernel(  # noqa: PLR0917  # the last four are TorchRec's
    configs: list[StackedTable],
    config: GroupedEmbeddingConfig,
    pg: dist.ProcessGroup | None,
    device: torch.device | None,
    spread_over: dist.ProcessGroup | None = None,
) -> ComposedFusedEmbeddingBag | ComposedDenseEmbeddingBag:
    """The kernel of tables of one operation; see ``SpreadGroup`` where the ranks ``spread_over`` share their rows."""
    dense = config.compute_kernel == EmbeddingComputeKernel.DENSE
    kernel = (ComposedDenseEmbeddingBag if dense else ComposedFusedEmbeddingBag)(configs, config, pg, device)
    if spread_over is not None:
        kernel.group = SpreadGroup(config.embedding_tables, configs, spread_over)
    return kernel


def _one_feature_each(config: GroupedEmbeddingConfig) -> GroupedEmbeddingConfig:
    """The kernel's config: it sums any bags, no matter which feature they come from."""
    tables = [
        replace(table, feature_names=table.feature_names[:1], embedding_names=table.embedding_names[:1])
        for table in config.embedding_tables
    ]
    return replace(config, embedding_tables=tables, pooling=PoolingType.SUM)
