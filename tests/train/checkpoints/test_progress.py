"""Which validation is the best, when a run ends, and what it reports."""

from __future__ import annotations

import dataclasses
import math

import pytest

from dlrm_torchrec.train.checkpoints.progress import Progress


def validated(*found: dict[str, float]) -> Progress:
    """A run with a validation every 10 steps."""
    progress = Progress(identity={}, lanes=1)
    for number, metrics in enumerate(found, start=1):
        progress = dataclasses.replace(progress, step=10 * number).validated(metrics)
    return progress


@pytest.mark.parametrize(
    ("name", "values", "best_step", "without_gain"),
    [
        ("auc", (0.6, 0.7, 0.65, 0.7), 20, 2),  # as good is no gain
        ("auc", (0.0,), 10, 0),
        ("auc", (math.nan, 0.5, math.nan), 20, 1),
        ("auc", (math.nan, math.nan), 0, 2),
        ("rmse", (2.0, 1.0, 1.5), 20, 1),
        ("hr@10", (0.1, 0.3, 0.2), 20, 1),
    ],
)
def test_the_best_validation(name: str, values: tuple[float, ...], best_step: int, without_gain: int) -> None:
    progress = validated(*({name: value} for value in values))
    assert (progress.best_step, progress.without_gain) == (best_step, without_gain)
    assert progress.best == ({name: values[best_step // 10 - 1]} if best_step else {})
    assert progress.last.keys() == {name}


def test_hit_rate_decides_before_auc() -> None:
    assert validated({"hr@10": 0.2, "auc": 0.9}, {"auc": 0.8, "hr@10": 0.3}).best_step == 20


def test_a_run_ends_by_its_steps_or_without_gain() -> None:
    progress = validated({"auc": 0.6}, {"auc": 0.5}, {"auc": 0.5})  # at step 30
    ended = [progress.ended(40, early_stop) for early_stop in (0, 1, 2, 3)]
    assert ended == [False, True, True, False]
    assert progress.ended(30)
    assert not progress.ended(31)


def test_metrics_name_the_best_only_where_they_differ() -> None:
    assert validated({"auc": 0.6}, {"auc": 0.7}).metrics() == {"val/auc": 0.7}
    assert validated({"auc": 0.7, "samples": 9}, {"auc": 0.6, "samples": 9}).metrics() == {
        "val/auc": 0.6,
        "val/samples": 9,
        "best/val/auc": 0.7,
    }
    assert validated().metrics() == {}
