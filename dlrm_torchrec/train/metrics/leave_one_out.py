"""Leave-one-out ranking: the rank of each user's held-out item among negatives, computed exactly over all ranks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import nn

from dlrm_torchrec.train.metrics.gates import TrainingError, check_learned
from dlrm_torchrec.train.metrics.scores import Scores
from dlrm_torchrec.train.task import RankingBatch
from dlrm_torchrec.train.world import World


@torch.no_grad()
def evaluate_leave_one_out(
    model: nn.Module, batches: Iterable[RankingBatch], world: World, *, user: str, learned: bool, k: int = 10
) -> dict[str, float]:
    """``leave_one_out_metrics`` of a task over all real rows of all ranks; every rank gets the same dictionary.

    Args:
        model: the task, which returns logits
        batches: this rank's part of the rows; a user's rows may be in any batches and on any ranks
        world: all ranks
        user: the feature whose id says which rows belong together
        learned: whether the model has had time to learn, so that constant logits or an AUC of 0.5 are an error
        k: the length of the top list of HR@k and NDCG@k
    """
    training = model.training
    model.eval()
    empty = torch.empty(0, device=world.device)
    users, scores, labels = [empty.long()], [empty], [empty]
    for batch in batches:
        moved = batch.to(world.device, non_blocking=True)
        _, (_, logits, _) = model(moved)
        ids = moved.sparse_features[user].values()
        if len(ids) != batch.num_rows:
            raise ValueError(
                f"feature {user!r} must have one id per row, so that rows can be grouped by user: got {len(ids)} in "
                f"{batch.num_rows} rows; name the column of the users"
            )
        users.append(ids)
        scores.append(logits[: batch.num_rows])
        labels.append(moved.labels[: batch.num_rows])
    model.train(training)
    ranked = held_out(torch.cat(users), torch.cat(scores), torch.cat(labels), world.device_group)
    metrics = leave_one_out_metrics(ranked, k)
    if learned:  # if a model knows nothing, the mean of per-user AUCs has the standard error of an AUC over all rows
        check_learned(Scores(ranked.scores, torch.ones_like(ranked.scores)), metrics)
    return metrics


class HeldOut(NamedTuple):
    """The held-out items of U users and counts of their negatives; each tensor is (U,)."""

    scores: torch.Tensor
    above: torch.Tensor  # negatives with a higher score
    equal: torch.Tensor  # negatives with the same score
    negatives: torch.Tensor


def held_out(
    users: torch.Tensor, scores: torch.Tensor, labels: torch.Tensor, group: dist.ProcessGroup | None = None
) -> HeldOut:
    """Counts per user from (N,) rows in any order: user ids, finite scores, and labels with one 1 per user.

    With ``group``, the counts cover the rows of all its ranks, and all ranks get the same counts. Raises TrainingError
    when a score is not finite, and ValueError when a user does not have exactly one positive and at least one negative;
    both are raised on all ranks.
    """
    most = users.max() if len(users) else users.new_tensor(-1)
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
            f"each user must have one positive and at least one negative: got {int(wrong.sum())} other users of "
            f"{int(known.sum())}; prepare with --task implicit --split leave_one_out"
        )
    target = scores.new_zeros(size).index_put((users[positive],), scores[positive])
    target = _over_ranks(target, group)  # a sum of one number and zeros
    above, equal = ~positive & (scores > target[users]), ~positive & (scores == target[users])
    above, equal = _over_ranks(torch.stack([count(above), count(equal)]), group)
    return HeldOut(target[known], above[known], equal[known], negatives[known])


def leave_one_out_metrics(held: HeldOut, k: int = 10) -> dict[str, float]:
    """HR@k, NDCG@k and AUC as means over users; ``positives`` counts users and ``samples`` counts all their rows.

    If r - 1 negatives are above the held-out item, HR@k is 1 and NDCG@k is 1 / log2(r + 1) for r <= k; otherwise both
    are 0 (arXiv 1708.05031, section 4.1). AUC is the share of negatives below the item (arXiv 1205.2618, section 3).
    Equal scores count as the mean over all their orders, so a constant score has HR@k = k / (1 + negatives). A negative
    that was drawn twice counts twice.
    """
    hits, ndcg = gains_of_users(held, k).mean(dim=1).tolist()
    return {
        f"hr@{k}": hits,
        f"ndcg@{k}": ndcg,
        "auc": float((1 - (held.above + 0.5 * held.equal.double()) / held.negatives).mean()),
        "positives": float(len(held.scores)),
        "samples": float(len(held.scores) + held.negatives.sum()),
    }


def gains_of_users(held: HeldOut, k: int = 10) -> torch.Tensor:
    """HR@k and NDCG@k of each user, (2, U) float64; ``leave_one_out_metrics`` are their means."""
    places = torch.arange(1, k + 1, dtype=torch.float64, device=held.above.device)
    gains = torch.stack([torch.ones_like(places), 1 / torch.log2(places + 1)])
    upto = nn.functional.pad(gains.cumsum(dim=1), (1, 0))
    first, last = held.above.clamp(max=k), (held.above + held.equal + 1).clamp(max=k)
    return (upto[:, last] - upto[:, first]) / (held.equal + 1)


def known_rankings(users: torch.Tensor, labels: torch.Tensor, scores: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """``leave_one_out_metrics`` of rows with given scores, as ``<name>/<metric>`` for each name in ``scores``."""
    return metrics_of_rankings({name: held_out(users, each, labels) for name, each in scores.items()})


def metrics_of_rankings(rankings: Mapping[str, HeldOut]) -> dict[str, float]:
    """``leave_one_out_metrics`` of each of the ``rankings``, as ``<name>/<metric>``, without those that count rows."""
    return {
        f"{name}/{metric}": value
        for name, held in rankings.items()
        for metric, value in leave_one_out_metrics(held).items()
        if metric not in ("positives", "samples")
    }


def _over_ranks(
    values: torch.Tensor, group: dist.ProcessGroup | None, operation: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM
) -> torch.Tensor:
    if group is not None:
        dist.all_reduce(values, operation, group=group)
    return values
