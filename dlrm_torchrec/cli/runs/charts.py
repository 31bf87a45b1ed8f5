"""Which charts are drawn of runs, and the order and the titles of metrics."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dlrm_torchrec.cli.runs.read import Run
from dlrm_torchrec.pages.lines import Chart, Series

COLOURS, DASHES = 8, 3
MOST_RUNS = COLOURS * DASHES  # that a chart can show apart
# Last parts of names of metrics that are the same at nearly every step, or tell only how long a window is.
NOT_DRAWN = ("positives", "samples", "age", "lookups", "admitted")
BEST = "teacher/auc"  # that of each window, in a run over windows


@dataclass(frozen=True)
class Metric:
    """What people see of a metric."""

    title: str
    note: str = ""
    level: tuple[str, float] | None = None  # a value to compare with


METRICS = {
    "train/loss": Metric("Training loss", "mean since the record before"),
    "val/logloss": Metric("Log-loss", "validation, nats"),
    "val/auc": Metric("AUC", "validation"),
    "val/ne": Metric("Normalised entropy", "validation", ("base rate", 1.0)),
    "val/calibration": Metric("Calibration", "validation, predicted / observed", ("calibrated", 1.0)),
    "val/rmse": Metric("RMSE", "validation"),
    "val/unseen": Metric("Unseen ids", "share of a window's lookups whose ids no earlier window had"),
    "lr/tables": Metric("Learning rate of the tables"),
    "lr/dense": Metric("Learning rate of the dense layers"),
    "samples_per_s": Metric("Speed", "samples/s, mean since the process started"),
    "bytes/fullest_rank": Metric("Memory of the fullest rank", "bytes, the most so far"),
    "bytes/emptiest_rank": Metric("Memory of the emptiest rank", "bytes, the most so far"),
    "val/accuracy": Metric("Accuracy", "validation"),
}


def title_of(metric: str) -> str:
    """For example ``AUC`` for val/auc; a metric that is not known is its own title."""
    return METRICS[metric].title if metric in METRICS else metric


def kind_of(number: int) -> str:
    """The CSS classes of a run's colour and dashes."""
    return f"run-{number % COLOURS} dash-{number // COLOURS}"


def charts_of(runs: Sequence[Run]) -> dict[str, Chart]:
    """A chart for each metric that any run has recorded with a finite number, the known metrics first."""
    recorded = dict.fromkeys(name for run in runs for _, numbers in run.records for name in numbers if name != BEST)
    names = [*(name for name in METRICS if name in recorded), *(name for name in recorded if name not in METRICS)]
    found = {}
    for name in names:
        metric = METRICS.get(name) or Metric(name)
        series = [Series(run.name, kind_of(number), run.points(name)) for number, run in enumerate(runs)]
        level = metric.level
        if name == "val/auc":
            best, level = _best_possible(runs)
            series += best
        finite = any(math.isfinite(value) for each in series for _, value in each.points)
        if finite and name.rpartition("/")[2] not in NOT_DRAWN:
            found[name] = Chart(metric.title, metric.note, series, last=max(run.step for run in runs), level=level)
    return found


def _best_possible(runs: Sequence[Run]) -> tuple[list[Series], tuple[str, float] | None]:
    """The best AUC as a line where it was recorded for each window, or else as a level; neither if nobody knows it."""
    name = "best possible"
    by_window = next(filter(None, (run.points(BEST) for run in runs)), None)
    if by_window:
        return [Series(name, kind_of(len(runs) % MOST_RUNS), by_window)], None
    best = max((run.final[BEST] for run in runs if BEST in run.final), default=None)
    return [], None if best is None else (name, best)
