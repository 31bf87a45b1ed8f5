"""Metrics of logits for a binary label."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.distributed as dist

from dlrm_torchrec.train.metrics.auc import auc
from dlrm_torchrec.train.metrics.gates import check_learned, check_scores
from dlrm_torchrec.train.metrics.scores import Scores

_ETA = 1e-12  # keeps logarithms finite, as in torchrec.metrics


def ranking_metrics(
    logits: torch.Tensor,
    labels: torch.Tensor,
    weights: torch.Tensor | None = None,
    group: dist.ProcessGroup | None = None,
) -> dict[str, float]:
    """AUC, normalised entropy, log-loss (nats), calibration (predicted / observed), accuracy and positives.

    NE is the cross-entropy divided by the cross-entropy of the constant base rate (He et al., ADKDD 2014).
    ``positives`` and ``samples`` count rows, whatever their weights. The arguments are those of ``Scores``, of one
    label; all ranks of the group get the same metrics.
    """
    scores = Scores(logits, labels, weights, group)
    total, predicted, entropy, right, observed, positives, samples = scores.sums(_terms)
    base = min(max(observed / total, _ETA), 1 - _ETA)
    constant = -observed * math.log(base) - (total - observed) * math.log(1 - base)
    return {
        "auc": auc(scores),
        "ne": entropy / constant,
        "logloss": entropy / total,
        "calibration": predicted / observed if observed > 0 else 0.0,
        "accuracy": right / total,
        "positives": positives,
        "samples": samples,
    }


def _terms(logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor) -> Sequence[torch.Tensor]:
    predictions = torch.sigmoid(logits)
    chance = predictions.clamp(_ETA, 1 - _ETA)
    entropy = -weights * (labels * chance.log() + (1 - labels) * (1 - chance).log())
    right = weights * ((predictions > 0.5) == (labels > 0.5))
    ones = torch.ones_like(labels)
    return weights, weights * predictions, entropy, right, weights * labels, labels, ones


def binary_metrics(scores: Scores, *, learned: bool, one_class: bool = False) -> dict[str, float]:
    """``ranking_metrics`` of one label; raises TrainingError where these would be meaningless, or the model is broken.

    ``learned`` says that the model has had time to learn, so constant logits or an AUC of 0.5 are an error (see
    ``gates``). ``one_class`` allows labels that are all alike: these have no ``auc`` and no ``ne``, and are no test of
    what was learned.
    """
    scores = scores.of_label(0)
    check_scores(scores, one_class=one_class)
    metrics = ranking_metrics(*scores)
    if metrics["positives"] in (0, metrics["samples"]):
        return {name: value for name, value in metrics.items() if name not in ("auc", "ne")}
    if learned:
        check_learned(scores, metrics)
    return metrics
