"""A model's outputs for all rows of all ranks, and what is measured of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import nn

from dlrm_torchrec.train.task import RankingBatch
from dlrm_torchrec.train.world import World


class Scores(NamedTuple):
    """Outputs of a model for N rows, next to their labels."""

    outputs: torch.Tensor  # (N,), or (N, L) if there are several labels
    labels: torch.Tensor  # likewise; NaN where one of several is unknown
    weights: torch.Tensor | None = None  # (N,), of the rows; None if all are 1

    def of_label(self, number: int) -> Scores:
        """Those of one label, (M,), for the M rows that count: where it is known and the weight is not 0."""
        several = self.labels.dim() == 2
        outputs, labels = (each[:, number] if several else each for each in (self.outputs, self.labels))
        counts = ~labels.isnan() if self.weights is None else ~labels.isnan() & (self.weights > 0)
        return Scores(outputs[counts], labels[counts], None if self.weights is None else self.weights[counts])


def on_all_ranks(
    scores: Scores | None, measure: Callable[[Scores], dict[str, float]], world: World
) -> dict[str, float]:
    """The result of ``measure`` on rank 0's scores, returned on every rank; a ValueError is raised on every rank."""
    answer: list[dict[str, float] | ValueError] = [{}]
    if scores is not None:
        try:
            answer[0] = measure(scores)
        except ValueError as error:
            answer[0] = error
    dist.broadcast_object_list(answer, src=0, group=world.control)
    if isinstance(answer[0], ValueError):
        raise answer[0]
    return answer[0]


@torch.no_grad()
def predict(model: nn.Module, batches: Iterable[RankingBatch], world: World) -> Scores | None:
    """The scores of all real rows of all ranks on rank 0; None on other ranks.

    All ranks must get the same number of batches. Rows are in the order of ranks, not of the data.
    """
    training = model.training
    model.eval()
    outputs: list[torch.Tensor] = []
    labels: list[torch.Tensor] = []
    weights: list[torch.Tensor] = []
    for batch in batches:
        _, (_, batch_outputs, _) = model(batch.to(world.device))
        outputs.append(batch_outputs[: batch.num_rows].cpu())
        labels.append(batch.labels[: batch.num_rows].cpu())
        if batch.weights is not None:
            weights.append(batch.weights[: batch.num_rows].cpu())
    model.train(training)
    parts = [_gather(torch.cat(each), world) for each in (outputs, labels, weights) if each]
    if not world.is_main:
        return None
    return Scores(*parts) if parts else Scores(torch.empty(0), torch.empty(0))


def _gather(values: torch.Tensor, world: World) -> torch.Tensor:
    """The tensors (n_rank, ...) of all ranks, concatenated on rank 0; nothing of use on other ranks."""
    sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(world.size)]
    dist.all_gather(sizes, torch.tensor([len(values)]), group=world.control)
    padded = values.new_zeros(max(int(size) for size in sizes), *values.shape[1:])
    padded[: len(values)] = values
    parts = [torch.empty_like(padded) for _ in range(world.size)] if world.is_main else None
    dist.gather(padded, parts, dst=0, group=world.control)
    return padded if parts is None else torch.cat([part[: int(size)] for part, size in zip(parts, sizes, strict=True)])
