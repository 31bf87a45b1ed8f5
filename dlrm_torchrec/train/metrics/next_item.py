"""The rank of each user's next item among all items, computed exactly over all ranks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from dlrm_torchrec.train.metrics.gates import TrainingError, check_learned
from dlrm_torchrec.train.metrics.leave_one_out import HeldOut, leave_one_out_metrics, metrics_of_rankings
from dlrm_torchrec.train.metrics.scores import Scores, gathered
from dlrm_torchrec.train.task import RankingBatch
from dlrm_torchrec.train.world import World


@torch.no_grad()
def evaluate(
    model: nn.Module, batches: Iterable[RankingBatch], world: World, *, learned: bool, k: int = 10
) -> dict[str, float]:
    """``leave_one_out_metrics`` of a task over all rows of all ranks; every rank gets the same dictionary.

    Args:
        model: the task, which returns the logits of ``ranked``
        batches: this rank's part of the rows
        world: all ranks
        learned: whether the model has had time to learn, so that constant logits or an AUC of 0.5 are an error
        k: the length of the top list of HR@k and NDCG@k
    """
    training = model.training
    model.eval()
    found = [torch.empty(4, 0, dtype=torch.float64, device=world.device)]
    for batch in batches:
        moved = batch.to(world.device, non_blocking=True)
        _, (_, logits, _) = model(moved)
        found.append(torch.stack([part.double() for part in ranked(logits[: moved.num_rows])]))
    model.train(training)
    scores, *counts = _of_all_ranks(torch.cat(found, dim=1), world.device_group)
    held = HeldOut(scores, *(each.long() for each in counts))
    if not bool(held.scores.isfinite().all()):
        raise TrainingError("logits must be finite: got NaN or infinity in evaluation; look at the learning rate")
    metrics = leave_one_out_metrics(held, k)
    if learned:
        check_learned(Scores(held.scores, torch.ones_like(held.scores)), metrics)
    return metrics


def ranked(logits: torch.Tensor) -> HeldOut:
    """What leaves a rank of the first of each row of ``logits`` (R, 1 + N) among the others; -inf is no other."""
    own, others = logits[:, :1], logits[:, 1:]
    broken = others.isnan().any(dim=1)
    return HeldOut(
        torch.where(broken, torch.nan, own.squeeze(1)),
        (others > own).sum(dim=1),
        (others == own).sum(dim=1),
        (others > -torch.inf).sum(dim=1),
    )


def known_rankings(rankings: Mapping[str, tuple[Any, Any, Any]]) -> dict[str, float]:
    """``metrics_of_rankings`` by counts: items above the one that came, equal to it, and all others, (R,) each."""
    counted = {name: [torch.from_numpy(each) for each in counts] for name, counts in rankings.items()}
    return metrics_of_rankings({name: HeldOut(torch.empty(len(each[0])), *each) for name, each in counted.items()})


def _of_all_ranks(columns: torch.Tensor, group: dist.ProcessGroup | None) -> torch.Tensor:
    """The columns (C, R) of each rank, with its own R, side by side in the order of ranks."""
    counts = gathered(torch.tensor([columns.shape[1]], device=columns.device), group).flatten().tolist()
    padded = nn.functional.pad(columns, (0, max(counts) - columns.shape[1]))
    parts = gathered(padded, group)
    return torch.cat([part[:, :count] for part, count in zip(parts, counts, strict=True)], dim=1)
