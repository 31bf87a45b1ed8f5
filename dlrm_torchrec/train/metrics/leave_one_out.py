"""Leave-one-out ranking: where each user's held-out item stands among negatives, exact over all ranks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import nn

from dlrm_torchrec.train.metrics.gates import TrainingError, check_learned
from dlrm_torchrec.train.task import RankingBatch
from dlrm_torchrec.train.world import World


@torch.no_grad()
def evaluate_leave_one_out(
    model: nn.Module, batches: Iterable[RankingBatch], world: World, *, user: str, learned: bool, k: int = 10
) -> dict[str, float]:
    """``leave_one_out_metrics`` of a task over every real row of every rank, the same dictionary on all ranks.

    Rows belong together by their id of the feature ``user``, in whichever batches and on whichever ranks they are.
    ``learned`` says that the model has had time to learn, so that one that has not is an error (see ``gates``).
    """
    training = model.training
    model.eval()
    users, scores, labels = [torch.empty(0, dtype=torch.int64)], [torch.empty(0)], [torch.empty(0)]
    for batch in batches:
        _, (_, logits, _) = model(batch.to(world.device))
        ids = batch.sparse_features[user].values()
        if len(ids) != batch.num_rows:
            raise ValueError(
                f"feature {user!r} must have one id per row to rank items by: got {len(ids)} in {batch.num_rows} rows; "
                "name the column of the users"
            )
        users.append(ids.cpu())
        scores.append(logits[: batch.num_rows].cpu())
        labels.append(batch.labels[: batch.num_rows].cpu())
    model.train(training)
    ranked = held_out(torch.cat(users), torch.cat(scores), torch.cat(labels), world.control)
    metrics = leave_one_out_metrics(ranked, k)
    if learned:  # the mean of per-user AUCs has, of a model that knows nothing, the standard error of one over all rows
        check_learned(ranked.scores, metrics)
    return metrics


class HeldOut(NamedTuple):
    """The held-out items of U users among their negatives: (U,) each."""

    scores: torch.Tensor
    above: torch.Tensor  # negatives of a higher score
    equal: torch.Tensor  # negatives of the same score
    negatives: torch.Tensor


def held_out(
    users: torch.Tensor, scores: torch.Tensor, labels: torch.Tensor, group: dist.ProcessGroup | None = None
) -> HeldOut:
    """Counts per user from (N,) rows, in any order: ids, finite scores, and one label of 1 for each user.

    With ``group``, the rows are those of all its ranks, which get the same counts. TrainingError, on all of them, when
    a score is not finite; ValueError when a user has more or less than one positive, or no negative.
    """
    most = users.max() if len(users) else torch.tensor(-1)
    size = 1 + int(_over_ranks(most.reshape(1), group, dist.ReduceOp.MAX))

    def count(rows: torch.Tensor) -> torch.Tensor:
        return torch.bincount(users[rows], minlength=size)

    positive = labels > 0.5
    per_user = torch.stack([count(positive), count(~positive), count(~scores.isfinite())])
    positives, negatives, broken = _over_ranks(per_user, group)
    if broken.any():
        raise TrainingError(
            f"logits must be finite: got NaN or infinity in {int(broken.sum())} rows; look at the learning rate"
        )
    known = positives + negatives > 0
    wrong = known & ((positives != 1) | (negatives == 0))
    if wrong.any() or not known.any():
        raise ValueError(
            f"each user must have one positive and some negatives to rank it among: got {int(wrong.sum())} other "
            f"users of {int(known.sum())}; prepare with --task implicit --split leave_one_out"
        )
    target = torch.zeros(size, dtype=scores.dtype).index_put((users[positive],), scores[positive])
    target = _over_ranks(target, group)  # a sum of one number and zeros
    above, equal = ~positive & (scores > target[users]), ~positive & (scores == target[users])
    above, equal = _over_ranks(torch.stack([count(above), count(equal)]), group)
    return HeldOut(target[known], above[known], equal[known], negatives[known])


def leave_one_out_metrics(held: HeldOut, k: int = 10) -> dict[str, float]:
    """HR@k, NDCG@k and AUC, means over users; ``positives`` are the users and ``samples`` all their rows.

    With r - 1 negatives above the held-out item, HR@k is 1 and NDCG@k is 1 / log2(r + 1) where r <= k, else 0 (arXiv
    1708.05031, section 4.1); AUC is the share of negatives below it (arXiv 1205.2618, section 3). All orders of equal
    scores are equally likely and their mean counts, so that a constant score has HR@k = k / (1 + negatives). A negative
    that was drawn twice counts twice.
    """
    places = torch.arange(1, k + 1, dtype=torch.float64)
    gains = torch.stack([torch.ones_like(places), 1 / torch.log2(places + 1)])
    upto = nn.functional.pad(gains.cumsum(dim=1), (1, 0))
    first, last = held.above.clamp(max=k), (held.above + held.equal + 1).clamp(max=k)
    hits, ndcg = ((upto[:, last] - upto[:, first]) / (held.equal + 1)).mean(dim=1).tolist()
    return {
        f"hr@{k}": hits,
        f"ndcg@{k}": ndcg,
        "auc": float((1 - (held.above + 0.5 * held.equal.double()) / held.negatives).mean()),
        "positives": float(len(held.scores)),
        "samples": float(len(held.scores) + held.negatives.sum()),
    }


def known_rankings(users: torch.Tensor, labels: torch.Tensor, scores: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """``leave_one_out_metrics`` of rows whose scores are given, as ``<name>/<metric>`` for each of ``scores``."""
    return {
        f"{name}/{metric}": value
        for name, each in scores.items()
        for metric, value in leave_one_out_metrics(held_out(users, each, labels)).items()
        if metric not in ("positives", "samples")
    }


def _over_ranks(
    values: torch.Tensor, group: dist.ProcessGroup | None, operation: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM
) -> torch.Tensor:
    if group is not None:
        dist.all_reduce(values, operation, group=group)
    return values
