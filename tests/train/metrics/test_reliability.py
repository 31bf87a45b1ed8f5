"""Calibration bins against plain loops and published intervals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from dlrm_torchrec.train.metrics.reliability import calibration_bins, expected_calibration_error, plot_calibration


def draw(n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    random = np.random.default_rng(seed)
    logits = random.normal(-1, 1.5, n)
    return torch.tensor(logits), torch.tensor(random.random(n) < 1 / (1 + np.exp(-logits))).float()


@pytest.mark.parametrize(("samples", "count"), [(1000, 20), (1003, 20), (7, 20), (1, 5), (50, 1)])
def test_bins_equal_a_loop_over_sorted_samples(samples: int, count: int) -> None:
    logits, labels = draw(samples)
    pairs = sorted(zip(logits.tolist(), labels.tolist(), strict=True))
    bins = calibration_bins(logits, labels, count=count)
    assert len(bins) == min(count, samples)
    assert max(each.samples for each in bins) - min(each.samples for each in bins) <= 1
    distance = 0.0
    for each in bins:
        mine, pairs = pairs[: each.samples], pairs[each.samples :]
        predicted = sum(1 / (1 + np.exp(-logit)) for logit, _ in mine) / len(mine)
        observed = sum(label for _, label in mine) / len(mine)
        assert (each.predicted, each.observed) == pytest.approx((predicted, observed))
        assert 0 <= each.low <= each.observed <= each.high <= 1
        distance += len(mine) * abs(predicted - observed)
    assert not pairs
    assert expected_calibration_error(bins) == pytest.approx(distance / samples)


def test_the_interval_is_wilsons() -> None:
    (ten,) = calibration_bins(torch.zeros(10), torch.tensor([1.0] * 3 + [0.0] * 7), count=1)
    assert (ten.low, ten.high) == pytest.approx((0.1078, 0.6032), abs=1e-4)


def test_a_calibrated_model_lies_within_most_intervals_and_a_biased_one_does_not() -> None:
    logits, labels = draw(40_000)
    inside = [each.low <= each.predicted <= each.high for each in calibration_bins(logits, labels)]
    assert sum(inside) >= 17
    assert sum(each.low <= each.predicted <= each.high for each in calibration_bins(logits + 1, labels)) < 5


def test_the_plot_is_an_image(tmp_path: Path) -> None:
    plot_calibration(calibration_bins(*draw(200), count=5), str(tmp_path / "c.png"))
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
