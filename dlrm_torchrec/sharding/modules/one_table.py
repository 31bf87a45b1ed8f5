"""Tables of one kernel as one table: their rows are stored below each other."""

from __future__ import annotations

from typing import TypeAlias

from fbgemm_gpu.split_table_batched_embeddings_ops_common import BoundsCheckMode
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    DenseTableBatchedEmbeddingBagsCodegen,
    SplitTableBatchedEmbeddingBagsCodegen,
)

Kernel: TypeAlias = DenseTableBatchedEmbeddingBagsCodegen | SplitTableBatchedEmbeddingBagsCodegen


def read_as_one_table(kernel: Kernel) -> None:
    """Let the kernel read bags of rows of all its tables, numbered through, as those of one feature.

    It must have one feature for each table, and all rows the same length and place. The tables keep their names,
    weights and moments.
    """
    assert len({dim for _, dim, *_ in kernel.embedding_specs}) == 1
    kernel.total_D = kernel.max_D
    kernel.D_offsets = kernel.D_offsets[:2].clone()
    kernel.hash_size_cumsum = kernel.hash_size_cumsum[[0, -1]].clone()
    for name, numbers in list(kernel.named_buffers()):
        if name.endswith(("_offsets", "_placements")) and name != "D_offsets":
            setattr(kernel, name, numbers[:1].clone())
    if isinstance(kernel, SplitTableBatchedEmbeddingBagsCodegen):
        kernel.feature_table_map = [0]
        kernel.bounds_check_mode_int = BoundsCheckMode.NONE.value  # rows come from ids that were checked


def reads_as_one_table(kernel: SplitTableBatchedEmbeddingBagsCodegen) -> bool:
    """Whether ``read_as_one_table`` was called."""
    return len(kernel.feature_table_map) < len(kernel.embedding_specs)
