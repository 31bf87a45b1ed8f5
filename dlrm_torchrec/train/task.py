"""The binary ranking task: a model's logits and its loss on one batch."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

Output = tuple[torch.Tensor, torch.Tensor, int]  # loss (detached), logits (B,) with padding, rows of all ranks


class RankingBatch(Protocol):
    """The fields of a batch that the task reads; see ``dlrm_torchrec.datasets.batch.Batch``."""

    dense_features: torch.Tensor
    sparse_features: KeyedJaggedTensor
    labels: torch.Tensor
    num_rows: int
    global_rows: int

    def to(self, device: torch.device) -> RankingBatch: ...


class BinaryRankingTask(nn.Module):
    """Binary cross-entropy over the global batch, for any number of ranks.

    The local loss is the sum over the rank's real rows times ``world_size / global_rows``. DDP and TorchRec both
    average gradients over ranks, so the result is the gradient of the mean over the global batch, even if ranks have
    different numbers of real rows.
    """

    def __init__(self, model: nn.Module, world_size: int, autocast: torch.dtype | None = None) -> None:
        """``model`` maps (dense (B, D), sparse KJT) to logits (B, 1).

        ``autocast`` is the dtype of its dense parts; None turns autocast off.
        """
        super().__init__()
        self.model = model
        self.world_size = world_size
        self.autocast = autocast
        self.loss = nn.BCEWithLogitsLoss(reduction="sum")

    def forward(self, batch: RankingBatch) -> tuple[torch.Tensor, Output]:
        """The loss to run backward on, and (loss, logits, rows of the global batch)."""
        device_type = next(self.model.parameters()).device.type
        with torch.autocast(device_type, dtype=self.autocast, enabled=self.autocast is not None):
            logits = self.model(batch.dense_features, batch.sparse_features)
        logits = logits.squeeze(-1).float()
        real = batch.num_rows
        loss = self.loss(logits[:real], batch.labels[:real]) * (self.world_size / batch.global_rows)
        return loss, (loss.detach(), logits.detach(), batch.global_rows)
