"""Weighted metrics, numbers and several labels: against their definitions in float64, and over unequal ranks."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrm_torchrec.datasets.batch import Batch
from dlrm_torchrec.train.checkpoints.progress import Progress
from dlrm_torchrec.train.metrics.labels import evaluate, label_metrics
from dlrm_torchrec.train.metrics.regression import regression_metrics
from dlrm_torchrec.train.metrics.reliability import calibration_bins, expected_calibration_error
from dlrm_torchrec.train.metrics.scores import Scores
from dlrm_torchrec.train.task import BinaryRankingTask
from tests.distributed import here, run_ranks

ROWS = 400


def draw(seed: int) -> Scores:
    """Logits with ties and two binary labels, the second often unknown; some weights are 0."""
    random = np.random.default_rng(seed)
    logits = random.normal(size=(ROWS, 2)).round(1)
    labels = (random.random((ROWS, 2)) < 1 / (1 + np.exp(-logits))).astype(np.float64)
    labels[random.random(ROWS) < 0.4, 1] = np.nan
    weights = random.choice([0.0, 0.25, 1.0, 2.5], ROWS)
    columns = [torch.tensor(each, dtype=torch.float32) for each in (logits, labels, weights)]
    return Scores(columns[0], columns[1], columns[2])


def reference(logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor) -> dict[str, float]:
    """Straight from the definitions: AUC over all pairs."""
    z, y, w = (each.double().numpy() for each in (logits, labels, weights))
    p = 1 / (1 + np.exp(-z))
    pairs = above = 0.0
    for i in np.flatnonzero(y == 1):
        for j in np.flatnonzero(y == 0):
            pairs += w[i] * w[j]
            above += w[i] * w[j] * (0.5 if z[i] == z[j] else float(z[i] > z[j]))
    logloss = -np.sum(w * (y * np.log(p) + (1 - y) * np.log(1 - p))) / w.sum()
    base = (w * y).sum() / w.sum()
    return {
        "auc": above / pairs,
        "logloss": logloss,
        "ne": logloss / -(base * math.log(base) + (1 - base) * math.log(1 - base)),
        "calibration": (w * p).sum() / (w * y).sum(),
        "accuracy": (w * ((p > 0.5) == (y == 1))).sum() / w.sum(),
        "positives": y[w > 0].sum(),
        "samples": (w > 0).sum(),
    }


@pytest.mark.parametrize("seed", range(3))
def test_metrics_of_each_label_equal_their_definitions(seed: int) -> None:
    scores = draw(seed)
    found = label_metrics(scores, labels=["click", "buy"], target="binary", learned=False)
    assert scores.weights is not None
    for number, name in enumerate(["click", "buy"]):
        known = ~scores.labels[:, number].isnan()
        wanted = reference(scores.outputs[known, number], scores.labels[known, number], scores.weights[known])
        for metric, value in wanted.items():
            assert found[f"{name}/{metric}"] == pytest.approx(value, rel=1e-6), metric
            if number == 0:
                assert found[metric] == found[f"click/{metric}"]


def test_whole_weights_are_repeated_rows() -> None:
    random = np.random.default_rng(0)
    logits, labels = torch.tensor(random.normal(size=50)), torch.tensor(random.integers(0, 2, 50))
    counts = torch.tensor(random.integers(0, 4, 50))
    weighted = Scores(logits, labels.double(), counts.double())
    repeated = Scores(logits.repeat_interleave(counts), labels.double().repeat_interleave(counts))
    one, other = (
        label_metrics(each, labels=["click"], target="binary", learned=False) for each in (weighted, repeated)
    )
    different = {"samples", "positives"}  # they count rows
    for metric in one.keys() - different:
        assert one[metric] == pytest.approx(other[metric], rel=1e-9), metric
    numbers = [regression_metrics(*each.of_label(0)) for each in (weighted, repeated)]
    for metric in numbers[0].keys() - different:
        assert numbers[0][metric] == pytest.approx(numbers[1][metric], rel=1e-9), metric
    bins = [calibration_bins(*each, count=1) for each in (weighted, repeated)]
    assert bins[0][0].observed == pytest.approx(bins[1][0].observed)
    assert bins[0][0].weight == bins[1][0].samples
    assert expected_calibration_error(bins[0]) == pytest.approx(expected_calibration_error(bins[1]))


def test_errors_of_numbers_equal_their_definitions() -> None:
    random = np.random.default_rng(1)
    labels, outputs = random.normal(3, 1, ROWS), random.normal(3, 1, ROWS)
    found = regression_metrics(torch.tensor(outputs), torch.tensor(labels))
    assert found["rmse"] == pytest.approx(np.sqrt(np.mean((labels - outputs) ** 2)))
    assert found["mae"] == pytest.approx(np.mean(np.abs(labels - outputs)))
    assert found["r2"] == pytest.approx(1 - np.mean((labels - outputs) ** 2) / np.var(labels))
    assert (found["mean"], found["observed_mean"]) == pytest.approx((outputs.mean(), labels.mean()))
    constant = regression_metrics(torch.full((ROWS,), labels.mean()), torch.tensor(labels))
    assert constant["r2"] == pytest.approx(0.0, abs=1e-12)


class Echo(BinaryRankingTask):
    """A task whose outputs are the dense columns of the batch."""

    def forward(self, batch: Any) -> Any:
        return torch.zeros(()), (torch.zeros(()), batch.dense_features, batch.num_rows)


def evaluate_share(scores: Scores, cuts: list[int]) -> dict[str, float]:
    world = here()
    mine = slice(cuts[world.rank], cuts[world.rank + 1])
    assert scores.weights is not None
    batch = Batch(
        dense_features=torch.cat([scores.outputs[mine], torch.ones(3, 2)]),
        sparse_features=KeyedJaggedTensor.empty(),
        labels=torch.cat([scores.labels[mine], torch.ones(3, 2)]),
        num_rows=mine.stop - mine.start,
        global_rows=ROWS,
        weights=torch.cat([scores.weights[mine], torch.ones(3)]),
    )
    task = Echo(nn.Identity(), world.size, labels=["click", "buy"])
    return evaluate(task, [batch], world, learned=False)


@pytest.mark.parametrize("cuts", [[0, 137, ROWS], [0, ROWS, ROWS]])
def test_evaluation_counts_every_row_of_unequal_ranks_once(cuts: list[int]) -> None:
    scores = draw(5)
    whole = label_metrics(scores, labels=["click", "buy"], target="binary", learned=False)
    for found in run_ranks(2, evaluate_share, scores, cuts):
        assert found == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_labels_that_are_alike_have_neither_auc_nor_entropy_of_a_base_rate(label: float) -> None:
    scores = draw(7)
    scores.labels[:, 0] = label
    found = label_metrics(scores, labels=["click", "buy"], target="binary", learned=True, one_class=True)
    assert {"auc", "ne", "click/auc", "click/ne"}.isdisjoint(found)
    assert scores.weights is not None
    logits, weights = scores.outputs[:, 0].double(), scores.weights.double()
    wanted = (weights * torch.nn.functional.softplus(logits if label == 0 else -logits)).sum() / weights.sum()
    assert found["logloss"] == pytest.approx(float(wanted), rel=1e-6)
    assert "buy/auc" in found


def test_what_makes_metrics_meaningless_is_named() -> None:
    scores = draw(6)
    scores.labels[:, 1] = torch.where(scores.labels[:, 1].isnan(), math.nan, 1.0)
    with pytest.raises(ValueError, match=r"^label 'buy': validation labels must have both classes: got "):
        label_metrics(scores, labels=["click", "buy"], target="binary", learned=False)
    only = Scores(torch.randn(4), torch.tensor([0.0, 0, 1, 0]), torch.tensor([1.0, 1, 0, 1]))
    with pytest.raises(ValueError, match="must have both classes: got 0 positives in 3 rows"):
        label_metrics(only, labels=["click"], target="binary", learned=False)
    with pytest.raises(ValueError, match="predicted numbers must be finite: got NaN or infinity"):
        regression_metrics(torch.full((3,), math.nan), torch.ones(3))
    with pytest.raises(ValueError, match="validation split must hold rows: got none"):
        regression_metrics(torch.empty(0), torch.empty(0))


def test_the_best_numbers_have_the_lowest_error() -> None:
    progress = Progress(identity={}, lanes=1)
    for error in (2.0, 1.0, 1.5):
        progress = progress.validated({"rmse": error})
    assert (progress.best, progress.last) == ({"rmse": 1.0}, {"rmse": 1.5})
