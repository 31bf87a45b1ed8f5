"""A model's outputs for all rows of all ranks, and sums over them; each rank holds the rows that it read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import nn

from dlrm_torchrec.train.task import RankingBatch
from dlrm_torchrec.train.world import World

_CHUNK_ROWS = 1 << 18  # summed at once, so that columns in float64 stay small


class Scores(NamedTuple):
    """Outputs of a model for this rank's N rows, next to their labels."""

    outputs: torch.Tensor  # (N,), or (N, L) if there are several labels
    labels: torch.Tensor  # likewise; NaN where one of several is unknown
    weights: torch.Tensor | None = None  # (N,), of the rows; None if all are 1
    group: dist.ProcessGroup | None = None  # the ranks that hold all rows together, by gloo; None: these are all rows

    def of_label(self, number: int) -> Scores:
        """Those of one label, (M,), for the M rows that count."""
        several, rows = self.labels.dim() == 2, self.counted(number)
        outputs, labels = (each[:, number] if several else each for each in (self.outputs, self.labels))
        weights = None if self.weights is None else self.weights[rows]
        return Scores(outputs[rows], labels[rows], weights, self.group)

    def counted(self, number: int) -> torch.Tensor:
        """The rows that count for a label, (N,) bool: where it is known and the weight is not 0."""
        known = ~(self.labels[:, number] if self.labels.dim() == 2 else self.labels).isnan()
        return known if self.weights is None else known & (self.weights > 0)

    def sums(self, terms: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], Sequence[torch.Tensor]]) -> list[float]:
        """The sum over all rows of all ranks of each of the ``terms`` of one label.

        ``terms`` gets outputs, labels and weights, (n,) float64 of some rows, and returns columns (n,).
        """
        total = torch.stack([term.double().sum() for term in terms(*[torch.empty(0, dtype=torch.float64)] * 3)])
        for start in range(0, len(self.outputs), _CHUNK_ROWS):
            rows = slice(start, start + _CHUNK_ROWS)
            outputs, labels = self.outputs[rows].double(), self.labels[rows].double()
            weights = torch.ones_like(labels) if self.weights is None else self.weights[rows].double()
            total += torch.stack([term.double().sum() for term in terms(outputs, labels, weights)])
        if self.group is not None:
            dist.all_reduce(total, group=self.group)
        found: list[float] = total.tolist()
        return found


@torch.no_grad()
def predict(model: nn.Module, batches: Iterable[RankingBatch], world: World) -> Scores:
    """The scores of this rank's real rows; all ranks must get the same number of batches."""
    training = model.training
    model.eval()
    outputs: list[torch.Tensor] = []
    labels: list[torch.Tensor] = []
    weights: list[torch.Tensor] = []
    for batch in batches:
        _, (_, batch_outputs, _) = model(batch.to(world.device))
        outputs.append(batch_outputs[: batch.num_rows].float().cpu())
        labels.append(batch.labels[: batch.num_rows].cpu())
        if batch.weights is not None:
            weights.append(batch.weights[: batch.num_rows].cpu())
    model.train(training)
    return Scores(_joined(outputs), _joined(labels), _joined(weights) if weights else None, world.control)


def _joined(parts: list[torch.Tensor]) -> torch.Tensor:
    """The parts as one tensor; the list is emptied, so that its memory is free before the next column is joined."""
    whole = torch.cat(parts) if parts else torch.empty(0)
    parts.clear()
    return whole


def dealt(
    columns: Sequence[torch.Tensor], part: torch.Tensor, rounds: int, group: dist.ProcessGroup | None
) -> Iterator[list[torch.Tensor]]:
    """All ranks' rows, dealt so that each of ``rounds`` x W parts lies on one of the W ranks as a whole.

    In round k, rank r gets part k W + r: its rows (n,) of every column, in the order of the ranks that they come from.
    A round needs memory for its own rows alone.

    Args:
        columns: columns (N,) of this rank's rows
        part: (N,), the part that each row belongs to
        rounds: the number of parts per rank; the same on all ranks
        group: the ranks; None means that this process is the only one
    """
    size = 1 if group is None else group.size()
    for number in range(rounds):
        rows = _rows_within(part, number * size, (number + 1) * size)
        if group is None or size == 1:
            yield [column[rows] for column in columns]
            continue
        rank = part[rows].long() - number * size
        rows = rows[rank.argsort(stable=True)]
        leaving = torch.bincount(rank, minlength=size)
        arriving = torch.empty_like(leaving)
        dist.all_to_all_single(arriving, leaving, group=group)
        received = []
        for column in columns:
            received.append(column.new_empty(int(arriving.sum())))
            dist.all_to_all_single(received[-1], column[rows], arriving.tolist(), leaving.tolist(), group=group)
        yield received


def _rows_within(part: torch.Tensor, first: int, end: int) -> torch.Tensor:
    """The rows whose part is in [first, end)."""
    chunks = enumerate(part.split(_CHUNK_ROWS))
    return torch.cat([n * _CHUNK_ROWS + torch.nonzero((c >= first) & (c < end)).squeeze(1) for n, c in chunks])


def gathered(values: torch.Tensor, group: dist.ProcessGroup | None) -> torch.Tensor:
    """The equally large tensors of all ranks, (W, ...)."""
    if group is None:
        return values[None]
    parts = [torch.empty_like(values) for _ in range(group.size())]
    dist.all_gather(parts, values, group=group)
    return torch.stack(parts)
