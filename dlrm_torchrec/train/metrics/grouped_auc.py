"""GAUC: the AUC of each user or request, averaged over them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from dlrm_torchrec.train.metrics.auc import ROUND_ROWS
from dlrm_torchrec.train.metrics.scores import Scores, at_once, dealt
from dlrm_torchrec.train.task import RankingBatch


def noting_ids(batches: Iterable[RankingBatch], feature: str, noted: list[torch.Tensor]) -> Iterator[RankingBatch]:
    """The same batches; the id of ``feature`` in each real row of a batch, (n,), is added to ``noted``.

    Rows of histories have the number of their user where ``feature`` is empty. Raises ValueError when a row has none or
    several.
    """
    for batch in batches:
        noted.append(batch.ids_of_rows(feature))
        yield batch


def grouped_auc(scores: Scores, ids: torch.Tensor) -> dict[str, float]:
    """``gauc``: the mean of the AUC of each id's rows, weighted by the weights of these rows (KDD 2018, DIN, eq. 7).

    An id whose rows are all positive or all negative has no AUC and does not count; ``gauc_share`` is the share of the
    weight of all rows that counts. GAUC is NaN if no id counts.

    Args:
        scores: outputs, labels and weights of the main label, the first
        ids: (N,) int64, the id by which each of this rank's rows is grouped
    """
    device = scores.outputs.device
    ids, scores = ids.to(device)[scores.counted(0)], scores.of_label(0)
    size = 1 if scores.group is None else scores.group.size()
    samples, total = scores.sums(lambda _, labels, weights: [torch.ones_like(labels), weights])
    rounds = max(1, round(samples / size / at_once(ROUND_ROWS, device)))
    part = (ids * -0x61C8864680B583EB >> 33 & 0x7FFFFFFF) % (rounds * size)  # Knuth's multiplicative hash
    columns = [ids, scores.outputs, scores.labels, *([] if scores.weights is None else [scores.weights])]
    sums = torch.zeros(2, dtype=torch.float64, device=device)
    for own, outputs, labels, *weights in dealt(columns, part.int(), rounds, scores.group):
        ones = torch.ones_like(outputs, dtype=torch.float64)
        sums += _sums(own, outputs, labels.double(), weights[0].double() if weights else ones)
    if scores.group is not None:
        torch.distributed.all_reduce(sums, group=scores.group)
    return {"gauc": float(sums[0] / sums[1]), "gauc_share": float(sums[1]) / total}


def _sums(ids: torch.Tensor, outputs: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The sums over ids of weight x AUC, and of the weights of the ids that have one; all rows of an id are here."""
    order = outputs.argsort(stable=True)
    order = order[ids[order].argsort(stable=True)]
    ids, outputs = ids[order], outputs[order]
    starts = torch.ones_like(ids, dtype=torch.bool)  # of an id's rows
    starts[1:] = ids[1:] != ids[:-1]
    changes = starts.clone()  # of the id or of the output
    changes[1:] |= outputs[1:] != outputs[:-1]
    place, owner = changes.cumsum(0) - 1, starts.cumsum(0) - 1

    def by(index: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        length = int(index[-1]) + 1 if len(index) else 0
        return values.new_zeros(length).index_add_(0, index, values)

    positive, negative = (by(place, (weights * each)[order]) for each in (labels, 1 - labels))
    owner_of_place = owner[changes]
    positives, negatives = by(owner_of_place, positive), by(owner_of_place, negative)
    before = (negatives.cumsum(0) - negatives)[owner_of_place]  # negatives of earlier ids
    won = by(owner_of_place, positive * (negative.cumsum(0) - negative / 2 - before))
    weight = positives + negatives
    counts = (positives > 0) & (negatives > 0)
    weight, won, pairs = weight[counts], won[counts], (positives * negatives)[counts]
    return torch.stack([(weight * won / pairs).sum(), weight.sum()])
