"""Which sharding types and kernels a plan may choose from."""

from __future__ import annotations

import torch
from torch import nn
from torchrec.distributed.embedding_types import EmbeddingComputeKernel
from torchrec.distributed.types import QuantizedCommCodecs
from torchrec.optim import RowWiseAdagrad

from dlrm_torchrec.sharding.concurrent import ConcurrentSharder

ROW_TYPES = ["row_wise", "table_row_wise", "grid_shard"]
COLUMN_TYPES = ["column_wise", "table_column_wise", "grid_shard"]

# A sharding type that would change the arithmetic of an optimizer is not offered with it.
CHANGED_BY = {
    RowWiseAdagrad: (
        COLUMN_TYPES,
        "its one moment per row would become one per column shard",
    ),
    torch.optim.Adam: (
        ["data_parallel"],
        "a replicated table decays the moments of rows that a batch does not touch, a fused one does not",
    ),
}


class ExactSharder(ConcurrentSharder):
    """TorchRec's sharder, on any device, kept to plans that train the same model.

    Row-wise types also run on CPU with gloo, where TorchRec hides them. Kernels that move tables out of device memory
    are not offered: a plan that does not fit should say so.
    """

    def __init__(
        self,
        optimizer: type[torch.optim.Optimizer],
        qcomm_codecs_registry: dict[str, QuantizedCommCodecs] | None = None,
    ) -> None:
        super().__init__(qcomm_codecs_registry=qcomm_codecs_registry)
        self.optimizer = optimizer

    def sharding_types(self, compute_device_type: str) -> list[str]:
        types = super().sharding_types(compute_device_type)
        types += [kind for kind in ROW_TYPES if kind not in types]
        excluded, _ = CHANGED_BY.get(self.optimizer, ([], ""))
        return [kind for kind in types if kind not in excluded]

    def compute_kernels(self, sharding_type: str, compute_device_type: str) -> list[str]:  # noqa: ARG002 (TorchRec's)
        dense, fused = EmbeddingComputeKernel.DENSE.value, EmbeddingComputeKernel.FUSED.value
        return [dense if sharding_type == "data_parallel" else fused]


def table_optimizer(tables: nn.Module) -> type[torch.optim.Optimizer]:
    """The optimizer that ``optimize_tables_in_backward`` marked the tables with."""
    classes: set[type[torch.optim.Optimizer]] = {
        kind for parameter in tables.parameters() for kind in getattr(parameter, "_optimizer_classes", [])
    }
    if len(classes) != 1:
        raise ValueError(
            f"tables must be marked with one optimizer before planning: got {sorted(c.__name__ for c in classes)}; "
            "call optimize_tables_in_backward first"
        )
    return classes.pop()
