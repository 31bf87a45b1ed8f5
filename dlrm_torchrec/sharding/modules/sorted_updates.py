"""FBGEMM's fused tables on CPU with lookups and updates of our own, see ``update_kernels``.

FBGEMM's object keeps the weights, the moments and the learning rate, so plans, checkpoints and schedules do not notice.
FBGEMM has no Adam for CPU, and ignores a weight decay there; these updates have both. On one
thread, FBGEMM's own lookup reads the sums of bags.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType, SparseType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import PoolingMode
from fbgemm_gpu.split_table_batched_embeddings_ops_training import SplitTableBatchedEmbeddingBagsCodegen

from dlrm_torchrec.embeddings.compositional.thread_pool import thread_pool
from dlrm_torchrec.sharding.modules.one_table import reads_as_one_table
from dlrm_torchrec.sharding.modules.update_kernels import (
    ADAGRAD,
    ADAM,
    MOST_ROWS,
    MULTIPLE,
    ROWWISE_ADAGRAD,
    SGD,
    Bags,
    Layout,
    Numbers,
    Part,
    Rule,
    look_up,
    update,
)

KINDS = {
    EmbOptimType.EXACT_SGD: SGD,
    EmbOptimType.EXACT_ADAGRAD: ADAGRAD,
    EmbOptimType.EXACT_ROWWISE_ADAGRAD: ROWWISE_ADAGRAD,
    EmbOptimType.ADAM: ADAM,
}
THREAD = 2**17  # numbers to read that are worth another thread; it takes some 50 microseconds to hand them over


def can_sort(tables: SplitTableBatchedEmbeddingBagsCodegen) -> bool:
    """Whether ``use_sorted_updates`` knows these tables: float32 ones on CPU with sums or means of bags."""
    return (
        tables.current_device.type == "cpu"
        and tables.weights_precision is SparseType.FP32
        and tables.output_dtype == SparseType.FP32.as_int()
        and tables.pooling_mode is not PoolingMode.NONE
        and tables.optimizer in KINDS
        and all(rows <= MOST_ROWS and dim % MULTIPLE == 0 for rows, dim, _, _ in tables.embedding_specs)
    )


def use_sorted_updates(tables: SplitTableBatchedEmbeddingBagsCodegen) -> None:
    """Replace the lookup and the update of ``tables``, which ``can_sort``, in place."""
    assert can_sort(tables)
    tables.forward = SortedTables(tables)


def become_adam(tables: SplitTableBatchedEmbeddingBagsCodegen) -> None:
    """Turn tables made for Adagrad into tables for Adam, with the names that FBGEMM gives the moments on a GPU."""
    assert tables.optimizer is EmbOptimType.EXACT_ADAGRAD
    tables.optimizer = EmbOptimType.ADAM
    tables.register_buffer("momentum2_host", torch.zeros_like(tables.momentum1_host))
    tables.momentum2_physical_offsets = tables.momentum1_physical_offsets
    tables.momentum2_physical_placements = tables.momentum1_physical_placements


def _layout(tables: SplitTableBatchedEmbeddingBagsCodegen, kind: int) -> Layout:
    dims = [tables.embedding_specs[table][1] for table in tables.feature_table_map]
    features = [tables.feature_table_map.count(table) for table in range(len(tables.embedding_specs))]
    moments = [0] * len(features) if kind == SGD else tables.momentum1_physical_offsets
    rows = [
        (end - count, end, specs[0], specs[1], weight, moment)
        for end, count, specs, weight, moment in zip(
            np.cumsum(features), features, tables.embedding_specs, tables.weights_physical_offsets, moments, strict=True
        )
    ]
    return Layout(np.array(rows, np.int64), np.cumsum([0, *dims]))


def _layout_as_one(tables: SplitTableBatchedEmbeddingBagsCodegen) -> Layout:
    rows = sum(specs[0] for specs in tables.embedding_specs)
    return Layout(np.array([(0, 1, rows, tables.max_D, 0, 0)], np.int64), np.array([0, tables.max_D]))


class SortedTables:
    """``forward`` of FBGEMM's tables: pooled vectors (batch size, sum of dims), whose backward updates the tables."""

    def __init__(self, tables: SplitTableBatchedEmbeddingBagsCodegen) -> None:
        self.tables, self.kind = tables, KINDS[tables.optimizer]
        as_one = reads_as_one_table(tables)
        self.layout = _layout_as_one(tables) if as_one else _layout(tables, self.kind)
        # FBGEMM's lookup is the faster one on one thread
        self._reads_by_fbgemm = not as_one and self.kind != ADAM and tables.pooling_mode is PoolingMode.SUM

    def __call__(
        self,
        indices: torch.Tensor,
        offsets: torch.Tensor,
        per_sample_weights: torch.Tensor | None = None,
        **options: Any,
    ) -> torch.Tensor:
        if options or (per_sample_weights is not None and per_sample_weights.requires_grad):
            return self._fbgemm(indices, offsets, per_sample_weights, options)
        indices, offsets, weights, _ = self.tables.prepare_inputs(indices, offsets, per_sample_weights)
        pooled: torch.Tensor = _LookUp.apply(  # type: ignore[no-untyped-call]  # untyped in torch
            self, indices.long(), offsets.long(), self._factors(offsets, weights), self.tables.weights_host
        )
        return pooled

    def _fbgemm(
        self,
        indices: torch.Tensor,
        offsets: torch.Tensor,
        per_sample_weights: torch.Tensor | None,
        options: dict[str, Any],
    ) -> torch.Tensor:
        if self.kind == ADAM:
            raise ValueError(
                "tables with Adam on cpu must have one batch size and weights of ids without a gradient: got "
                f"{sorted(options) or 'weights with a gradient'}; choose adagrad, or train on a GPU"
            )
        pooled: torch.Tensor = type(self.tables).forward(self.tables, indices, offsets, per_sample_weights, **options)
        return pooled

    def _factors(self, offsets: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
        """What each id's row is multiplied by; empty if all are 1."""
        if self.tables.pooling_mode is PoolingMode.MEAN:
            lengths = offsets.diff()
            shares = lengths.float().reciprocal().repeat_interleave(lengths)
            return shares if weights is None else shares * weights
        return torch.empty(0) if weights is None else weights.contiguous()

    def look_up(self, ids: torch.Tensor, offsets: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
        columns = self.layout.columns
        if self._reads_by_fbgemm and self._threads(ids) == 1:
            weights = factors if len(factors) else None
            updates = self.tables.iter.clone()
            pooled: torch.Tensor = type(self.tables).forward(self.tables, ids, offsets, weights)
            self.tables.iter.copy_(updates)  # which FBGEMM counts in some of its lookups
            return pooled
        # NumPy's large arrays have huge pages, which a system hands out faster
        output = torch.from_numpy(np.empty(((len(offsets) - 1) // (len(columns) - 1), int(columns[-1])), np.float32))
        weights = self.tables.weights_host.detach()
        self._on_all_threads(
            partial(look_up, self.layout, _bags(ids, offsets, factors), weights.numpy(), output.view(-1).numpy()), ids
        )
        return output

    def update(self, ids: torch.Tensor, offsets: torch.Tensor, factors: torch.Tensor, gradient: torch.Tensor) -> None:
        rule, numbers = self.next_step()
        flat = gradient.float().contiguous().view(-1).numpy()
        self._on_all_threads(partial(update, self.layout, _bags(ids, offsets, factors), numbers, rule, flat), ids)

    def next_step(self) -> tuple[Rule, Numbers]:
        """The optimizer at the update that now begins, and what it trains."""
        tables, options = self.tables, self.tables.optimizer_args
        tables.iter.add_(1)  # counts updates, as checkpoints do
        rule = Rule(
            self.kind,
            tables.get_learning_rate(),
            options.eps,
            options.weight_decay,
            options.beta1,
            options.beta2,
            int(tables.iter),
        )
        moments = [moment.detach().numpy() for moment in (tables.momentum1_host, tables.momentum2_host)]
        return rule, Numbers(tables.weights_host.detach().numpy(), *moments)

    def _on_all_threads(self, function: Any, ids: torch.Tensor) -> None:
        """Call ``function`` with each part of the work."""
        threads, count = torch.get_num_threads(), self._threads(ids)
        if count == 1:
            function(Part(0, 1))
        else:
            list(thread_pool(threads).map(function, [Part(number, count) for number in range(count)]))

    def _threads(self, ids: torch.Tensor) -> int:
        """How many threads the work on a batch is worth."""
        enough = len(ids) * int(self.layout.tables[:, 3].max()) // THREAD
        return max(1, min(torch.get_num_threads(), enough))


def _bags(ids: torch.Tensor, offsets: torch.Tensor, factors: torch.Tensor) -> Bags:
    return Bags(ids.numpy(), offsets.numpy(), factors.detach().numpy())


class _LookUp(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0917  # torch passes arguments by position
        ctx: Any,
        tables: SortedTables,
        ids: torch.Tensor,
        offsets: torch.Tensor,
        factors: torch.Tensor,
        _weights: torch.Tensor,  # needs a gradient, so that torch calls backward
    ) -> torch.Tensor:
        ctx.tables = tables
        ctx.save_for_backward(ids, offsets, factors)
        return tables.look_up(ids, offsets, factors)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[None, ...]:
        ctx.tables.update(*ctx.saved_tensors, gradient)
        return (None,) * 5
