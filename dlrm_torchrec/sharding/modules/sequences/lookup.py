"""The lookup of vectors of single ids: every kernel reads its tables as one table, a row for a bag."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torchrec.distributed.embedding_lookup import GroupedEmbeddingsLookup
from torchrec.distributed.embedding_types import EmbeddingComputeKernel, GroupedEmbeddingConfig, ShardedEmbeddingTable
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrm_torchrec.embeddings.compositional.operations import Add
from dlrm_torchrec.embeddings.compositional.partitions.arithmetic import Naive
from dlrm_torchrec.embeddings.compositional.table_configs import CompositionalEmbeddingConfig, StackedTable
from dlrm_torchrec.sharding.modules.composed_kernels import Stacked, composed_kernel
from dlrm_torchrec.sharding.modules.concurrent import look_up_by_kernel


class SequenceLookup(GroupedEmbeddingsLookup):
    """TorchRec's lookup for plain tables and the compositional ones in ``stacked``; see ``CompositionalLookup``.

    On CPU, plain tables are tables of one class per id, so that they have the kernels of pooled tables, which are
    faster there and know more optimizers.
    """

    def __init__(
        self, stacked: Stacked, *args: Any, spread_over: dist.ProcessGroup | None = None, **kwargs: Any
    ) -> None:
        self._stacked, self._spread_over = stacked, spread_over  # before TorchRec's __init__ creates the kernels
        self.in_order = False  # whether kernels must run one after another, as they exchange rows with other ranks
        super().__init__(*args, **kwargs)
        self.fused = all(each.compute_kernel != EmbeddingComputeKernel.DENSE for each in self.grouped_configs)

    def forward(self, sparse_features: KeyedJaggedTensor) -> torch.Tensor:
        """The vectors of all ids (N, dim) in a row, feature by feature."""
        # DDP counts the gradients of a replica's kernels itself
        found = look_up_by_kernel(self, sparse_features) if self.fused else None
        vectors: torch.Tensor = super().forward(sparse_features) if found is None else torch.cat(found)
        return vectors

    def _create_embedding_kernel(
        self,
        config: GroupedEmbeddingConfig,
        pg: dist.ProcessGroup | None,
        device: torch.device | None,
        *args: Any,
        **kwargs: Any,
    ) -> torch.nn.Module:
        stacked = [self._stacked[table.name] for table in config.embedding_tables if table.name in self._stacked]
        kernel: torch.nn.Module
        if stacked:
            self.in_order |= self._spread_over is not None
            kernel = composed_kernel(stacked, config, pg, device, self._spread_over)
        elif device is not None and device.type == "cpu":
            kernel = kernel_of_rows(config, pg, device)
        else:
            kernel = super()._create_embedding_kernel(config, pg, device, *args, **kwargs)
        return kernel


def kernel_of_rows(
    config: GroupedEmbeddingConfig, pg: dist.ProcessGroup | None, device: torch.device | None
) -> torch.nn.Module:
    """The kernel of plain tables as of tables of one class per id."""
    kernel: torch.nn.Module = composed_kernel(
        [_of_one_class_per_id(each) for each in config.embedding_tables], config, pg, device
    )
    return kernel


def _of_one_class_per_id(table: ShardedEmbeddingTable) -> StackedTable:
    """A plain table, or its rows on this rank, as a compositional one."""
    return CompositionalEmbeddingConfig(
        name=table.name,
        num_embeddings=table.local_rows,
        embedding_dim=table.local_cols,
        feature_names=list(table.feature_names),
        partition=Naive(table.local_rows),
        operation=Add(),
    ).stacked()
