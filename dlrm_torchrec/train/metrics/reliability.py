"""Calibration: how far predicted probabilities are from observed shares of positives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from dlrm_torchrec.train.metrics.auc import ascending_ranges
from dlrm_torchrec.train.metrics.scores import Scores, gathered

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
    logits: torch.Tensor,
    labels: torch.Tensor,
    weights: torch.Tensor | None = None,
    group: dist.ProcessGroup | None = None,
    *,
    count: int = 20,
) -> list[Bin]:
    """``count`` bins in ascending order of predictions, with equally many samples, give or take one.

    There are fewer bins if there are fewer samples, and none for samples whose weights are all 0. Where equal
    predictions lie in several bins, each bin gets the same mixture of them. The arguments are those of ``Scores``, of
    one label; all ranks of the group get the same bins.
    """
    scores = Scores(logits, labels, weights, group)
    (total,) = scores.sums(lambda z, _, __: [torch.ones_like(z)])
    samples, larger = divmod(int(total), count)
    ends = torch.tensor([0] + [samples + (number < larger) for number in range(count)]).cumsum(0)
    below = logits.new_zeros(4, count + 1, dtype=torch.float64)  # sums over the samples before each end
    first = 0  # sample of the next range
    for z, y, w in ascending_ranges(scores):
        lengths = gathered(torch.tensor([len(z)], device=z.device), group).flatten().tolist()
        rank = 0 if group is None else group.rank()
        below += _sums_below(z.double(), y.double(), w, ends - first - sum(lengths[:rank]))
        first += sum(lengths)
    if group is not None:
        dist.all_reduce(below, group=group)
    return [_bin(*each) for each in zip(ends.diff().tolist(), *below.diff().tolist(), strict=True) if each[1] > 0]


def _sums_below(logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """Sums (4, E) over the first ``ends`` (E,) samples in order: weights, predictions, labels, squared weights.

    The ends are on the CPU. Predictions and labels are weighted. Of equal predictions, the first k of n count as k/n of
    all of them.
    """
    values, place, lengths = torch.unique(logits, return_inverse=True, return_counts=True)
    terms = torch.stack([weights, weights * torch.sigmoid(logits), weights * labels, weights.square()])
    sums = terms.new_zeros(4, len(values)).index_add_(1, place, terms)
    known = nn.functional.pad(sums.cumsum(1), (1, 0)).cpu().numpy()
    positions = nn.functional.pad(lengths.cumsum(0), (1, 0)).cpu().numpy()
    return torch.tensor(np.array([np.interp(ends.numpy(), positions, each) for each in known]), device=logits.device)


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


def _bin(samples: int, *sums: float) -> Bin:
    total, predicted, positives, squares = sums
    observed = min(1.0, positives / total)
    n = total**2 / squares  # samples of equal weights with the same variance (Kish, 1965)
    middle = (observed + _SIGMAS**2 / (2 * n)) / (1 + _SIGMAS**2 / n)
    half = _SIGMAS * math.sqrt(observed * (1 - observed) / n + _SIGMAS**2 / (4 * n * n)) / (1 + _SIGMAS**2 / n)
    return Bin(samples, total, predicted / total, observed, max(0.0, middle - half), min(1.0, middle + half))
