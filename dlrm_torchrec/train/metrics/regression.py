"""Metrics of predicted numbers, computed exactly over all ranks."""

from __future__ import annotations

import math

import torch

from dlrm_torchrec.train.metrics.gates import TrainingError


def regression_metrics(
    outputs: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None = None
) -> dict[str, float]:
    """RMSE, MAE and R² = 1 - Σ w (y - ŷ)² / Σ w (y - ȳ)² of predicted numbers, where ȳ is the mean of these labels.

    ``outputs``, ``labels`` and ``weights`` are (N,); without weights, all are 1. R² is 0 if all labels are equal.
    Raises TrainingError when there are no rows, or when an output is not finite.
    """
    if not len(labels):
        raise TrainingError("validation split must hold rows: got none; look at the splits in dataset.json")
    if not bool(torch.isfinite(outputs).all()):
        raise TrainingError(
            "predicted numbers must be finite: got NaN or infinity in evaluation; look at the learning rate and at "
            "the dense columns of the validation split"
        )
    outputs, labels = outputs.double(), labels.double()
    weights = torch.ones_like(labels) if weights is None else weights.double()
    total = weights.sum()
    error = outputs - labels
    squared = float((weights * error.square()).sum() / total)
    mean = (weights * labels).sum() / total
    variance = float((weights * (labels - mean).square()).sum() / total)
    return {
        "rmse": math.sqrt(squared),
        "mae": float((weights * error.abs()).sum() / total),
        "r2": 1 - squared / variance if variance else 0.0,
        "mean": float((weights * outputs).sum() / total),
        "observed_mean": float(mean),
        "samples": float(len(labels)),
    }
