"""Bytes of tables and of their optimizers' state, as FBGEMM allocates them."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torchrec.distributed.planner.shard_estimators import EmbeddingStorageEstimator
from torchrec.distributed.planner.types import ShardingOption, Storage
from torchrec.optim import RowWiseAdagrad

MOMENT_BYTES = 4  # float32, whatever the weights are


def optimizer_bytes(table: torch.Tensor, size: Sequence[int]) -> int:
    """Bytes of the moments of a shard of ``size`` (rows, columns), by the optimizer that ``table`` is marked with."""
    (optimizer,) = table._optimizer_classes  # type: ignore[attr-defined]  # TorchRec's mark
    moments: dict[type[torch.optim.Optimizer], int] = {
        torch.optim.SGD: 0,
        RowWiseAdagrad: size[0],
        torch.optim.Adagrad: prod(size),
        torch.optim.Adam: 2 * prod(size),
    }
    return MOMENT_BYTES * moments[optimizer]


class StorageEstimator(EmbeddingStorageEstimator):
    """TorchRec's, which counts the moments of a table at the width of its weights: fp16 tables have float32 ones."""

    def estimate(self, sharding_options: list[ShardingOption], *args: Any, **kwargs: Any) -> None:
        """Set the storage of every shard of every option."""
        super().estimate(sharding_options, *args, **kwargs)
        for option in sharding_options:
            uncounted = 1 - option.tensor.element_size() / MOMENT_BYTES
            for shard in option.shards:
                missing = int(uncounted * optimizer_bytes(option.tensor, shard.size))
                on_device = self._topology.compute_device == "cuda" and option.compute_kernel == "fused"
                shard.storage += Storage(hbm=missing, ddr=0) if on_device else Storage(hbm=0, ddr=missing)
