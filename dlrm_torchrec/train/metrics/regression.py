"""Metrics of predicted numbers, computed exactly over all ranks."""

from __future__ import annotations

import math

import torch
import torch.distributed as dist

from dlrm_torchrec.train.metrics.gates import TrainingError
from dlrm_torchrec.train.metrics.scores import Scores


def regression_metrics(
    outputs: torch.Tensor,
    labels: torch.Tensor,
    weights: torch.Tensor | None = None,
    group: dist.ProcessGroup | None = None,
) -> dict[str, float]:
    """RMSE, MAE and R² = 1 - Σ w (y - ŷ)² / Σ w (y - ȳ)² of predicted numbers, where ȳ is the mean of these labels.

    R² is 0 if all labels are equal. The arguments are those of ``Scores``, of one label; all ranks of the group get the
    same metrics. Raises TrainingError on all of them when there are no rows, or when an output is not finite.
    """
    scores = Scores(outputs, labels, weights, group)
    samples, broken = scores.sums(lambda z, _, __: [torch.ones_like(z), ~z.isfinite()])
    if not samples:
        raise TrainingError("validation split must hold rows: got none; look at the splits in dataset.json")
    if broken:
        raise TrainingError(
            "predicted numbers must be finite: got NaN or infinity in evaluation; look at the learning rate and at "
            "the dense columns of the validation split"
        )
    total, squared, absolute, predicted, observed = scores.sums(
        lambda z, y, w: [w, w * (z - y).square(), w * (z - y).abs(), w * z, w * y]
    )
    mean = observed / total
    (variance,) = scores.sums(lambda _, y, w: [w * (y - mean).square()])
    return {
        "rmse": math.sqrt(squared / total),
        "mae": absolute / total,
        "r2": 1 - squared / variance if variance else 0.0,
        "mean": predicted / total,
        "observed_mean": mean,
        "samples": samples,
    }
