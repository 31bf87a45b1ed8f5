"""Standard errors of a change of quality: how much it differs between samples of rows that are drawn anew."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dlrm_torchrec.inference.quality.paired import standard_errors
from dlrm_torchrec.inference.quality.report import Report, check_quality
from dlrm_torchrec.train.metrics.labels import label_metrics
from dlrm_torchrec.train.metrics.scores import Scores

ROWS, SAMPLES = 300, 200
NAMES = ["click", "buy"]


def drawn(metric: str, number: np.random.Generator, *, weighted: bool) -> tuple[Scores, Scores]:
    """Scores of two models for the same rows, of which the second is a rounded and noisy copy of the first."""
    truth = number.normal(size=(ROWS, 2))
    first = truth + number.normal(size=(ROWS, 2))
    second = np.round(first + 0.3 * number.normal(size=(ROWS, 2)), 1)
    if metric == "rmse":
        labels, outputs = truth, [first, second]
    else:
        labels = (truth + number.normal(size=(ROWS, 2)) > 0).astype(float)
        outputs = [1 / (1 + np.exp(-each)) for each in (first, second)]
    labels[:30, 1] = np.nan  # of rows in which the second label is unknown
    weights = torch.from_numpy(number.exponential(size=ROWS)) if weighted else None
    before, after = (Scores(torch.from_numpy(each), torch.from_numpy(labels), weights) for each in outputs)
    return before, after


def measured(scores: Scores, metric: str) -> dict[str, float]:
    if metric == "rmse":
        return label_metrics(scores, labels=NAMES, target="number", learned=False)
    scores = scores._replace(outputs=torch.logit(scores.outputs))
    return label_metrics(scores, labels=NAMES, target="binary", learned=False)


@pytest.mark.parametrize("metric", ["auc", "rmse", "logloss"])
def test_changes_of_many_samples_differ_as_one_of_them_says(metric: str) -> None:
    number = np.random.default_rng(7)
    changes: dict[str, list[float]] = {metric: [], f"buy/{metric}": []}
    said: dict[str, list[float]] = {name: [] for name in changes}
    for _ in range(SAMPLES):
        before, after = drawn(metric, number, weighted=True)
        old, new = measured(before, metric), measured(after, metric)
        errors = standard_errors(old, metric, before, after, labels=NAMES)
        assert errors.keys() == {metric, f"click/{metric}", f"buy/{metric}"}
        for name, each in changes.items():
            each.append(new[name] / old[name] if metric == "rmse" else new[name] - old[name])
            said[name].append(errors[name])
    for name, each in changes.items():
        assert np.mean(said[name]) == pytest.approx(np.std(each), rel=0.2), name  # of 200 samples: 5 % by chance


def test_a_label_of_one_class_is_judged_by_log_loss() -> None:
    before, after = drawn("logloss", np.random.default_rng(0), weighted=False)
    alike = [each._replace(labels=torch.zeros(ROWS, 2)) for each in (before, after)]
    errors = standard_errors({"logloss": 0.3, "click/logloss": 0.3}, "logloss", *alike, labels=NAMES)
    rise = -torch.log1p(-alike[1].outputs[:, 0]) + torch.log1p(-alike[0].outputs[:, 0])
    assert errors == pytest.approx(dict.fromkeys(("logloss", "click/logloss"), float(rise.std()) / ROWS**0.5))


def test_the_label_that_fell_most_beyond_chance_decides() -> None:
    before = {"auc": 0.8, "click/auc": 0.8, "buy/auc": 0.7, "logloss": 0.4}
    after = {"auc": 0.79, "click/auc": 0.79, "buy/auc": 0.697, "logloss": 0.9}
    errors = {"auc": 0.005, "click/auc": 0.005, "buy/auc": 0.0004}
    report = Report(
        split="val", before=before, after=after, standard_errors=errors, largest_change=0.1, bytes_before={},
        bytes_after={},
    )  # fmt: skip
    assert report.fault(0.0023) == ""
    assert report.fault(0.002) == "AUC must not fall by more than 0.002 plus two standard errors of 0.0004: got 0.003"
    check_quality(report, 0.0023, option="--limit")
    with pytest.raises(
        ValueError, match=r"got 0.003, and nothing was written; give tables more bits, .* raise --limit"
    ):
        check_quality(report, 0.002, option="--limit")
