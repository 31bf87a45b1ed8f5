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
_DEVICE_TIMES = 8  # as many rows are worked on at once on a GPU, which is launched for each part of them


class Scores(NamedTuple):
    """Outputs of a model for this rank's N rows, next to their labels."""

    outputs: torch.Tensor  # (N,), or (N, L) if there are several labels; all columns are on one device
    labels: torch.Tensor  # likewise; NaN where one of several is unknown
    weights: torch.Tensor | None = None  # (N,), of the rows; None if all are 1
    group: dist.ProcessGroup | None = None  # the ranks that hold all rows, for that device; None: these are all rows

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
        empty = self.outputs.new_empty(0, dtype=torch.float64)
        total = torch.stack([term.double().sum() for term in terms(*[empty] * 3)])
        chunk = at_once(_CHUNK_ROWS, self.outputs.device)
        for start in range(0, len(self.outputs), chunk):
            rows = slice(start, start + chunk)
            outputs, labels = self.outputs[rows].double(), self.labels[rows].double()
            weights = torch.ones_like(labels) if self.weights is None else self.weights[rows].double()
            total += torch.stack([term.double().sum() for term in terms(outputs, labels, weights)])
        if self.group is not None:
            dist.all_reduce(total, group=self.group)
        found: list[float] = total.tolist()
        return found


@torch.no_grad()
def predict(model: nn.Module, batches: Iterable[RankingBatch], world: World) -> Scores:
    """The scores of this rank's real rows, on its device; all ranks must get the same number of batches.

    No batch waits for the device.
    """
    training = model.training
    model.eval()
    outputs: list[torch.Tensor] = []
    labels: list[torch.Tensor] = []
    weights: list[torch.Tensor] = []
    for batch in batches:
        moved = batch.to(world.device, non_blocking=True)
        _, (_, batch_outputs, _) = model(moved)
        outputs.append(batch_outputs[: moved.num_rows].float())
        labels.append(moved.labels[: moved.num_rows])
        if moved.weights is not None:
            weights.append(moved.weights[: moved.num_rows])
    model.train(training)
    outcomes, truth = (_joined(each, world.device) for each in (outputs, labels))
    return Scores(outcomes, truth, _joined(weights, world.device) if weights else None, world.device_group)


def _joined(parts: list[torch.Tensor], device: torch.device) -> torch.Tensor:
    """The parts as one tensor; the list is emptied, so that its memory is free before the next column is joined."""
    whole = torch.cat(parts) if parts else torch.empty(0, device=device)
    parts.clear()
    return whole


def at_once(rows: int, device: torch.device) -> int:
    """Rows to work on at once on ``device``, where a CPU works on ``rows``."""
    return rows if device.type == "cpu" else rows * _DEVICE_TIMES


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
        come, go = torch.stack([arriving, leaving]).tolist()
        received = []
        for column in columns:
            received.append(column.new_empty(sum(come)))
            dist.all_to_all_single(received[-1], column[rows], come, go, group=group)
        yield received


def _rows_within(part: torch.Tensor, first: int, end: int) -> torch.Tensor:
    """The rows whose part is in [first, end)."""
    chunk = at_once(_CHUNK_ROWS, part.device)
    chunks = enumerate(part.split(chunk))
    return torch.cat([n * chunk + torch.nonzero((c >= first) & (c < end)).squeeze(1) for n, c in chunks])


def gathered(values: torch.Tensor, group: dist.ProcessGroup | None) -> torch.Tensor:
    """The equally large tensors of all ranks, (W, ...)."""
    if group is None:
        return values[None]
    parts = [torch.empty_like(values) for _ in range(group.size())]
    dist.all_gather(parts, values, group=group)
    return torch.stack(parts)
