"""The batch that every stream yields and every model takes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.streamable import Pipelineable


@dataclass
class Batch(Pipelineable):
    """One rank's share of one global batch.

    All ranks hold the same number ``B`` of rows, because the collectives need it. The last ``B - num_rows`` rows are
    padding (zeros and empty bags). Only the last batch of an epoch can have padding. A loss or a metric reads
    ``[:num_rows]``, and a mean divides by ``global_rows``, so padding is neither trained on nor counted.
    """

    dense_features: torch.Tensor  # (B, D) float32
    sparse_features: KeyedJaggedTensor  # F keys, stride B, int64 values; float32 weights if any feature has weights
    labels: torch.Tensor  # (B,) float32, 0 or 1 or any number; (B, L) if there are several, NaN where one is unknown
    num_rows: int  # real rows on this rank, 0..B
    global_rows: int  # real rows over all ranks
    weights: torch.Tensor | None = None  # (B,) float32, of the rows; None means that all are 1

    def ids_of_rows(self, feature: str) -> torch.Tensor:
        """The id of a sparse feature in each real row, (num_rows,) on the CPU.

        Raises ValueError when a row has none or several.
        """
        bags = self.sparse_features[feature]
        lengths = bags.lengths()[: self.num_rows]
        if not bool((lengths == 1).all()):
            raise ValueError(
                f"feature {feature!r} must have one id in every row to group rows by: got a row with "
                f"{int(lengths[lengths != 1][0])}; name another feature"
            )
        ids: torch.Tensor = bags.values()[: self.num_rows].cpu()
        return ids

    def to(self, device: torch.device, non_blocking: bool = False) -> Batch:  # noqa: FBT001, FBT002  # TorchRec's
        return Batch(
            dense_features=self.dense_features.to(device, non_blocking=non_blocking),
            sparse_features=self.sparse_features.to(device, non_blocking=non_blocking),
            labels=self.labels.to(device, non_blocking=non_blocking),
            num_rows=self.num_rows,
            global_rows=self.global_rows,
            weights=None if self.weights is None else self.weights.to(device, non_blocking=non_blocking),
        )

    def record_stream(self, stream: torch.Stream) -> None:
        self.dense_features.record_stream(stream)
        self.sparse_features.record_stream(stream)
        self.labels.record_stream(stream)
        if self.weights is not None:
            self.weights.record_stream(stream)

    def pin_memory(self) -> Batch:
        return Batch(
            dense_features=self.dense_features.pin_memory(),
            sparse_features=self.sparse_features.pin_memory(),
            labels=self.labels.pin_memory(),
            num_rows=self.num_rows,
            global_rows=self.global_rows,
            weights=None if self.weights is None else self.weights.pin_memory(),
        )
