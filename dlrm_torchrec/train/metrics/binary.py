"""Ranking metrics, computed exactly over all ranks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
import torch.distributed as dist
from torch import nn
from torchmetrics.functional.classification import binary_auroc
from torchrec.metrics.calibration import compute_calibration
from torchrec.metrics.ne import compute_ne, get_ne_states

from dlrm_torchrec.train.metrics.gates import check_learned, check_scores
from dlrm_torchrec.train.task import RankingBatch
from dlrm_torchrec.train.world import World

_ETA = 1e-12  # keeps log2 finite, as torchrec.metrics does


def ranking_metrics(logits: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """AUC, normalised entropy, log-loss (nats), calibration (predicted / observed), accuracy and positives.

    ``logits`` and ``labels`` are (N,). NE is the cross-entropy divided by the cross-entropy of the constant base rate
    (He et al., ADKDD 2014).
    """
    predictions, labels = torch.sigmoid(logits.double()), labels.double()
    weights = torch.ones_like(labels)
    states = get_ne_states(labels, predictions.clone(), weights, _ETA)
    bits, positives, negatives = states["cross_entropy_sum"], states["pos_labels"], states["neg_labels"]
    return {
        "auc": float(binary_auroc(predictions, labels.long())),
        "ne": float(compute_ne(bits, states["weighted_num_samples"], positives, negatives, _ETA)),
        "logloss": float(bits) * math.log(2) / len(labels),  # torchrec's own log-loss is in bits
        "calibration": float(compute_calibration(predictions.sum(), positives)),
        "accuracy": float(((predictions > 0.5) == (labels > 0.5)).double().mean()),
        "positives": float(positives),
        "samples": float(len(labels)),
    }


def evaluate(model: nn.Module, batches: Iterable[RankingBatch], world: World, *, learned: bool) -> dict[str, float]:
    """Metrics of a task over all real rows of all ranks; every rank gets the same dictionary.

    ``learned`` says that the model has had time to learn, so constant logits or an AUC of 0.5 are an error (see
    ``gates``). All ranks must get the same number of batches.
    """

    def measure(scores: torch.Tensor) -> dict[str, float]:
        logits, labels = scores
        check_scores(logits, labels)
        metrics = ranking_metrics(logits, labels)
        if learned:
            check_learned(logits, metrics)
        return metrics

    return on_all_ranks(predict(model, batches, world), measure, world)


def on_all_ranks(
    scores: torch.Tensor | None, measure: Callable[[torch.Tensor], dict[str, float]], world: World
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
def predict(model: nn.Module, batches: Iterable[RankingBatch], world: World) -> torch.Tensor | None:
    """Logits and labels (2, N) of all real rows of all ranks on rank 0; None on other ranks.

    All ranks must get the same number of batches. Rows are in the order of ranks, not of the data.
    """
    training = model.training
    model.eval()
    logits, labels = [torch.empty(0)], [torch.empty(0)]
    for batch in batches:
        _, (_, batch_logits, _) = model(batch.to(world.device))
        logits.append(batch_logits[: batch.num_rows].cpu())
        labels.append(batch.labels[: batch.num_rows].cpu())
    model.train(training)
    return _gather(torch.stack([torch.cat(logits), torch.cat(labels)]), world)


def _gather(values: torch.Tensor, world: World) -> torch.Tensor | None:
    """The (2, n_rank) tensors of all ranks, concatenated on rank 0; None on other ranks."""
    sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(world.size)]
    dist.all_gather(sizes, torch.tensor([values.size(1)]), group=world.control)
    longest = max(int(size) for size in sizes)
    padded = nn.functional.pad(values, (0, longest - values.size(1))).contiguous()
    parts = [torch.empty_like(padded) for _ in range(world.size)] if world.is_main else None
    dist.gather(padded, parts, dst=0, group=world.control)
    if parts is None:
        return None
    return torch.cat([part[:, : int(size)] for part, size in zip(parts, sizes, strict=True)], dim=1)
