"""The area under the ROC curve over all ranks, with weights and exact for equal scores."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from dlrm_torchrec.train.metrics.scores import Scores, at_once, dealt, gathered

ROUND_ROWS = 1 << 19  # about as many rows are sorted at once by each rank, on a CPU
_SAMPLES = 64  # of each rank's outputs for each range; more of them make ranges more equal


def auc(scores: Scores) -> float:
    """The share of pairs of a positive and a negative in which the positive has the higher output.

    A pair counts with the product of its weights, and half of it if the outputs are equal. Without weights, the result
    does not depend on which rank holds which row. ``scores`` are of one label, 0 or 1.
    """
    pairs = torch.stack([_pairs(*rows) for rows in ascending_ranges(scores)])
    won, positive, negative = gathered(pairs, scores.group).transpose(0, 1).flatten(0, 1).T  # in the order of ranges
    won = won.sum() + (positive * (negative.cumsum(0) - negative)).sum()
    return float(won / (positive.sum() * negative.sum()))


def ascending_ranges(scores: Scores) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """All rows of all ranks in ranges of outputs that ascend with the round, then with the rank.

    Each round gives this rank the outputs, labels and weights, (n,), of one range, in any order. Equal outputs are in
    one range. All ranks get the same number of rounds, one at least. The outputs must be finite.
    """
    size = 1 if scores.group is None else scores.group.size()
    (samples,) = scores.sums(lambda outputs, _, __: [torch.ones_like(outputs)])
    held = scores.outputs
    round_rows = at_once(ROUND_ROWS, held.device)
    rounds = max(1, round(samples / size / round_rows))
    chosen = held.new_full((_SAMPLES * rounds,), torch.nan)
    if len(held):
        places = torch.linspace(0, len(held) - 1, len(chosen), dtype=torch.float64, device=held.device)
        chosen = held[places.long()]
    known = gathered(chosen, scores.group).flatten()
    known = known[~known.isnan()].sort().values
    edges = known[torch.arange(1, rounds * size, device=held.device) * len(known) // (rounds * size)]
    part = held.new_empty(len(held), dtype=torch.int16 if len(edges) < 1 << 15 else torch.int32)
    for rows, into in zip(held.split(round_rows), part.split(round_rows), strict=True):
        into.copy_(torch.bucketize(rows, edges, right=True))
    columns = [held, scores.labels, *([] if scores.weights is None else [scores.weights])]
    for outputs, labels, *weights in dealt(columns, part, rounds, scores.group):
        ones = torch.ones_like(outputs, dtype=torch.float64)
        yield outputs, labels, weights[0].double() if weights else ones


def _pairs(outputs: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The weight of pairs in which the positive has the higher output, of positives and of negatives: (3,) float64."""
    values, place = torch.unique(outputs, return_inverse=True)  # sorted, so a higher place is a higher output
    positive, negative = (
        torch.zeros_like(values, dtype=torch.float64).index_add_(0, place, part)
        for part in (weights * labels, weights * (1 - labels))
    )
    won = positive * (negative.cumsum(0) - negative / 2)
    return torch.stack([won.sum(), positive.sum(), negative.sum()])
