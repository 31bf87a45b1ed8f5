"""The sharding types and kernels that a plan may choose from."""

from __future__ import annotations

from typing import Any, ClassVar, get_args

import torch
from torch import nn
from torchrec.distributed.embedding_types import EmbeddingComputeKernel
from torchrec.distributed.types import QuantizedCommCodecs
from torchrec.optim import RowWiseAdagrad

from dlrm_torchrec.sharding.config import ShardingType
from dlrm_torchrec.sharding.modules.concurrent import BlankSharder, ConcurrentSharder

ROW_TYPES = ["row_wise", "table_row_wise", "grid_shard"]
COLUMN_TYPES = ["column_wise", "table_column_wise", "grid_shard"]
HOST_KERNELS = [EmbeddingComputeKernel.FUSED_UVM_CACHING.value, EmbeddingComputeKernel.FUSED_UVM.value]


class DenseAdam(torch.optim.Adam):
    """Torch's own Adam on whole tables: every row moves in every step, by its moments and by the L2 penalty."""


# A sharding type that would change the arithmetic of an optimizer is not offered for that optimizer.
CHANGED_BY = {
    RowWiseAdagrad: (
        COLUMN_TYPES,
        "its one moment per row would become one per column shard",
    ),
    torch.optim.Adam: (
        ["data_parallel"],
        "the moments of rows that a batch does not touch would decay, unlike in a fused table",
    ),
    DenseAdam: (
        [kind for kind in get_args(ShardingType) if kind != "data_parallel"],
        "rows that a batch does not touch would not move, unlike in a replicated table",
    ),
}


class Exact(BlankSharder):
    """A sharder for any device, limited to sharding types that train the same model.

    On a GPU, it also offers kernels that keep tables in the host's memory; ``make_plan`` excludes them unless the user
    asks for them.
    """

    more_types: ClassVar[list[str]] = []  # that TorchRec does not offer on every device

    def __init__(
        self,
        optimizer: type[torch.optim.Optimizer],
        qcomm_codecs_registry: dict[str, QuantizedCommCodecs] | None = None,
        *,
        sorted_updates: bool = False,
    ) -> None:
        super().__init__(qcomm_codecs_registry=qcomm_codecs_registry, sorted_updates=sorted_updates)
        self.optimizer = optimizer

    def sharding_types(self, compute_device_type: str) -> list[str]:
        inherited: Any = super()
        types: list[str] = inherited.sharding_types(compute_device_type)
        types += [kind for kind in self.more_types if kind not in types]
        excluded, _ = CHANGED_BY.get(self.optimizer, ([], ""))
        return [kind for kind in types if kind not in excluded]

    def compute_kernels(self, sharding_type: str, compute_device_type: str) -> list[str]:
        if sharding_type == "data_parallel":
            return [EmbeddingComputeKernel.DENSE.value]
        return [EmbeddingComputeKernel.FUSED.value, *(HOST_KERNELS if compute_device_type == "cuda" else [])]


class ExactSharder(Exact, ConcurrentSharder):
    """Shards an ``EmbeddingBagCollection``; row-wise types also on CPU, where TorchRec does not offer them."""

    more_types = ROW_TYPES


def table_optimizer(tables: nn.Module) -> type[torch.optim.Optimizer]:
    """The optimizer with which ``optimize_tables_in_backward`` marked the tables."""
    classes: set[type[torch.optim.Optimizer]] = {
        kind for parameter in tables.parameters() for kind in getattr(parameter, "_optimizer_classes", [])
    }
    if len(classes) != 1:
        raise ValueError(
            f"tables must be marked with one optimizer before planning: got {sorted(c.__name__ for c in classes)}; "
            "call optimize_tables_in_backward first"
        )
    return classes.pop()
