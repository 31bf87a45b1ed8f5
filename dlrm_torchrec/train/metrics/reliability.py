"""Calibration: how far predicted probabilities are from observed shares of positives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

_SIGMAS = 1.96  # standard deviations of a normal distribution that give an interval of 95 %


@dataclass(frozen=True)
class Bin:
    """Samples with similar predictions; means and shares are weighted, if samples have weights."""

    samples: int
    weight: float  # sum of the samples' weights
    predicted: float  # mean probability
    observed: float  # share of positives
    low: float  # lower end of Wilson's 95 % interval for the true share of positives (JASA 22, 1927)
    high: float


def calibration_bins(
    logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None = None, *, count: int = 20
) -> list[Bin]:
    """``count`` bins in ascending order of predictions, with equally many samples, give or take one.

    There are fewer bins if there are fewer samples, and none for samples whose weights are all 0. ``logits``,
    ``labels`` and ``weights`` are (N,).
    """
    order = torch.argsort(logits, stable=True)
    weights = torch.ones(len(logits)) if weights is None else weights
    columns = (torch.sigmoid(logits[order].double()), labels[order].double(), weights[order].double())
    bins = zip(*(column.tensor_split(count) for column in columns), strict=True)
    return [_bin(predicted, observed, own) for predicted, observed, own in bins if float(own.sum()) > 0]


def expected_calibration_error(bins: Sequence[Bin]) -> float:
    """The mean distance between predicted and observed, weighted by samples (Naeini et al., AAAI 2015)."""
    distance = sum(each.weight * abs(each.predicted - each.observed) for each in bins)
    return distance / sum(each.weight for each in bins)


def plot_calibration(bins: Sequence[Bin], path: str) -> None:
    """Writes a picture of the bins to ``path``, whose ending decides the format; needs matplotlib."""
    from matplotlib.figure import Figure  # an optional dependency that only pictures need

    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.subplots()
    predicted, observed = [each.predicted for each in bins], [each.observed for each in bins]
    below = [each.observed - each.low for each in bins]
    above = [each.high - each.observed for each in bins]
    most = max(*predicted, *(each.high for each in bins))
    axes.plot([0, most], [0, most], color="gray", linewidth=1, label="predicted = observed")
    axes.errorbar(predicted, observed, yerr=[below, above], fmt="o", markersize=4, label="observed, 95 % interval")
    axes.set(xlabel="mean predicted probability", ylabel="share of positives", title="Calibration")
    axes.legend()
    figure.savefig(path)


def _bin(predictions: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor) -> Bin:
    total = float(weights.sum())
    observed, predicted = (float((weights * each).sum()) / total for each in (labels, predictions))
    n = total**2 / float(weights.square().sum())  # samples of equal weights with the same variance (Kish, 1965)
    middle = (observed + _SIGMAS**2 / (2 * n)) / (1 + _SIGMAS**2 / n)
    half = _SIGMAS * math.sqrt(observed * (1 - observed) / n + _SIGMAS**2 / (4 * n * n)) / (1 + _SIGMAS**2 / n)
    return Bin(len(labels), total, predicted, observed, max(0.0, middle - half), min(1.0, middle + half))
