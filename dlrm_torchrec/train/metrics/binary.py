"""Metrics of logits for a binary label."""

from __future__ import annotations

import math

import torch
from torchrec.metrics.calibration import compute_calibration
from torchrec.metrics.ne import compute_ne, get_ne_states

from dlrm_torchrec.train.metrics.auc import weighted_auc
from dlrm_torchrec.train.metrics.gates import check_learned, check_scores
from dlrm_torchrec.train.metrics.scores import Scores

_ETA = 1e-12  # keeps log2 finite, as torchrec.metrics does


def ranking_metrics(
    logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None = None
) -> dict[str, float]:
    """AUC, normalised entropy, log-loss (nats), calibration (predicted / observed), accuracy and positives.

    ``logits``, ``labels`` and ``weights`` are (N,); without weights, all are 1. NE is the cross-entropy divided by the
    cross-entropy of the constant base rate (He et al., ADKDD 2014). ``positives`` and ``samples`` count rows, whatever
    their weights.
    """
    predictions, labels = torch.sigmoid(logits.double()), labels.double()
    weights = torch.ones_like(labels) if weights is None else weights.double()
    total = float(weights.sum())
    states = get_ne_states(labels, predictions.clone(), weights, _ETA)
    bits, positives, negatives = states["cross_entropy_sum"], states["pos_labels"], states["neg_labels"]
    return {
        "auc": weighted_auc(predictions, labels, weights),
        "ne": float(compute_ne(bits, states["weighted_num_samples"], positives, negatives, _ETA)),
        "logloss": float(bits) * math.log(2) / total,  # torchrec's own log-loss is in bits
        "calibration": float(compute_calibration((weights * predictions).sum(), positives)),
        "accuracy": float((weights * ((predictions > 0.5) == (labels > 0.5))).sum() / total),
        "positives": float(labels.sum()),
        "samples": float(len(labels)),
    }


def binary_metrics(scores: Scores, *, learned: bool) -> dict[str, float]:
    """``ranking_metrics`` of one label; raises TrainingError where these would be meaningless, or the model is broken.

    ``learned`` says that the model has had time to learn, so constant logits or an AUC of 0.5 are an error (see
    ``gates``).
    """
    scores = scores.of_label(0)
    check_scores(scores.outputs, scores.labels)
    metrics = ranking_metrics(*scores)
    if learned:
        check_learned(scores.outputs, metrics)
    return metrics
