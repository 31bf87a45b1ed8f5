"""The tasks: a model's outputs and their loss on one batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol

import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

Target = Literal["binary", "number"]  # what labels are: 0 or 1, or any number
# loss (detached), outputs (B,) or (B, L) with padding, rows of all ranks
Output = tuple[torch.Tensor, torch.Tensor, int]


class RankingBatch(Protocol):
    """The fields that all batches have; those of rows also have ``dense_features`` (see ``datasets.batch``)."""

    sparse_features: KeyedJaggedTensor
    labels: torch.Tensor
    num_rows: int
    global_rows: int
    weights: torch.Tensor | None

    def ids_of_rows(self, feature: str) -> torch.Tensor: ...

    def to(self, device: torch.device, non_blocking: bool = False) -> RankingBatch: ...  # noqa: FBT001, FBT002  # TorchRec's


class RankingTask(nn.Module):
    """A loss over the global batch, for any number of ranks.

    The loss is Σ_i w_i Σ_l loss(output_il, label_il) / n: it sums over the n rows i of the global batch, with their
    weights as they are, and over the labels l that are known for a row.

    The local loss is the sum over the rank's real rows times ``world_size / global_rows``. DDP and TorchRec both
    average gradients over ranks, so the result is the gradient of the mean over the global batch, even if ranks have
    different numbers of real rows.
    """

    target: Target

    def __init__(
        self,
        model: nn.Module,
        world_size: int,
        labels: Sequence[str] = ("label",),
        *,
        device: torch.device | None = None,
    ) -> None:
        """Wraps ``model``, whose gradients are then those of the loss.

        Args:
            model: maps (dense (B, D), sparse KJT) to outputs (B, L), one for each label
            world_size: the number of ranks
            labels: the names of the labels, for metrics
            device: where ``move_dense`` moves the dense parts; None leaves them where they are
        """
        super().__init__()
        if device is not None:
            move_dense(model, device)
        self.model = model
        self.labels = tuple(labels)
        self.world_size = world_size
        self.autocast: torch.dtype | None = None  # the dtype of the model's dense parts; see train/speed.py

    def forward(self, batch: RankingBatch) -> tuple[torch.Tensor, Output]:
        """The loss to run backward on, and (loss, outputs, rows of the global batch)."""
        device_type = next(self.model.parameters()).device.type
        with torch.autocast(device_type, dtype=self.autocast, enabled=self.autocast is not None):
            outputs = self.outputs(batch)
        outputs = outputs.squeeze(-1).float()
        loss = self.loss(outputs[: batch.num_rows], real_labels(batch), loss_weights(batch))
        loss = loss * (self.world_size / batch.global_rows)
        return loss, (loss.detach(), outputs.detach(), batch.global_rows)

    def outputs(self, batch: Any) -> torch.Tensor:
        """The model's outputs of one batch, which has the inputs that the model takes."""
        found: torch.Tensor = self.model(batch.dense_features, batch.sparse_features)
        return found

    def loss(self, outputs: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
        """The sum of the losses of outputs and labels of one shape, times the weights of that shape."""
        raise NotImplementedError


class BinaryRankingTask(RankingTask):
    """Binary cross-entropy of labels 0 or 1, from logits."""

    target: Target = "binary"

    def loss(self, outputs: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
        return binary_cross_entropy_with_logits(outputs, labels, weights, reduction="sum")


class CandidateTask(BinaryRankingTask):
    """``BinaryRankingTask`` of the candidates of sequences, for a model that maps a whole batch to logits (C, 1)."""

    def outputs(self, batch: Any) -> torch.Tensor:
        found: torch.Tensor = self.model(batch)
        return found


class NextItemTask(RankingTask):
    """Softmax over items, for a model that maps a whole batch to logits (R, 1 + N), those of the right items first."""

    target: Target = "binary"

    def outputs(self, batch: Any) -> torch.Tensor:
        found: torch.Tensor = self.model(batch)
        return found

    def loss(self, outputs: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:  # noqa: ARG002  # all are 1
        return -outputs.log_softmax(dim=1)[:, 0].sum()


class RegressionTask(RankingTask):
    """Squared error of labels that are numbers; the model's outputs are these numbers."""

    target: Target = "number"

    def loss(self, outputs: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
        if weights is None:
            return mse_loss(outputs, labels, reduction="sum")
        return (weights * (outputs - labels).square()).sum()


def move_dense(model: nn.Module, device: torch.device) -> None:
    """Move all of ``model`` but its tables, which are on meta, to ``device``, in place.

    Weights that were drawn on the CPU are the same on every device: each kind of device draws other random numbers.
    """
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if not parameter.is_meta and parameter.device != device:
                moved = nn.Parameter(parameter.detach().to(device), requires_grad=parameter.requires_grad)
                setattr(module, name, moved)
        for name, buffer in list(module.named_buffers(recurse=False)):
            if not buffer.is_meta:
                setattr(module, name, buffer.to(device))


TASKS: dict[str, type[RankingTask]] = {"binary": BinaryRankingTask, "number": RegressionTask}  # by the labels' target


def task_of(model: nn.Module) -> RankingTask:
    """The task inside the wrappers that train it on several ranks."""
    return next(module for module in model.modules() if isinstance(module, RankingTask))


# TorchRec's pipelines trace the task with fx, which cannot follow branches.
@torch.fx.wrap
def real_labels(batch: RankingBatch) -> torch.Tensor:
    """The labels of the real rows, with 0 in place of unknown ones."""
    labels = batch.labels[: batch.num_rows]
    return labels if labels.dim() == 1 else labels.nan_to_num()


@torch.fx.wrap
def loss_weights(batch: RankingBatch) -> torch.Tensor | None:
    """The weights of the real rows' labels, in the shape of the labels: 0 where one is unknown; None if all are 1."""
    labels = batch.labels[: batch.num_rows]
    weights = None if batch.weights is None else batch.weights[: batch.num_rows]
    if labels.dim() == 1:
        return weights
    known = (~labels.isnan()).float()
    return known if weights is None else known * weights[:, None]
