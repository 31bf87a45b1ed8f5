"""Progressive validation: each window is evaluated by the model of the windows before it, and only then trained on.

The metrics of a window stand in the progress of its run, and so in its checkpoints. They are recorded once, at the end
of the window's training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from statistics import fmean
from typing import Protocol

from dlrm_torchrec.train.checkpoints.progress import DECISIVE, Progress


class Window(Protocol):
    """What is told of a window; see ``dlrm_torchrec.datasets.windows.window``."""

    @property
    def name(self) -> str: ...

    @property
    def day(self) -> float:
        """When it begins, in days; only differences mean something."""

    @property
    def digest(self) -> str:
        """What tells its rows from all others."""

    @property
    def best_auc(self) -> Callable[[], float] | None:
        """The AUC that no model can expect to exceed; None where nobody knows it."""


def opened(progress: Progress, window: Window, metrics: Mapping[str, float], *, unseen: float, steps: int) -> Progress:
    """The progress with ``window``, evaluated and about to be trained on.

    Besides ``val/...``, its metrics are ``val/unseen``, ``val/age``, the days since the window that the model was last
    trained on began, and ``teacher/auc``, the best possible one. A model that learned in another run has no
    ``val/unseen`` in its first window, because nobody knows which ids it has seen.

    Args:
        progress: that at the end of the window before
        window: the new window
        metrics: those of its rows; none where there was no model before
        unseen: the share of its lookups whose ids no earlier window had
        steps: the steps in which it is trained on
    """
    found = {f"val/{name}": value for name, value in metrics.items()}
    if progress.windows or not metrics:
        found["val/unseen"] = unseen
    if progress.windows:
        found["val/age"] = window.day - progress.windows[-1]["day"]
    if window.best_auc is not None:
        found["teacher/auc"] = window.best_auc()
    return progress.opened(name=window.name, day=window.day, digest=window.digest, steps=steps, metrics=found)


def progressive_metrics(progress: Progress) -> dict[str, float]:
    """The metrics of the newest window, their means over all with a model before them, and the main ones of each.

    These are ``val/<metric>``, ``progressive/<metric>`` and ``windows/<window>/<metric>``. Only a window
    whose model was to be published and was not has ``published``, 0.
    """
    main = [f"val/{name}" for name in (*DECISIVE, "gauc", "ne", "unseen", "age")]
    found = dict(progress.windows[-1]["metrics"]) if progress.windows else {}
    judged = [
        each["metrics"] for each in progress.windows if any(f"val/{name}" in each["metrics"] for name in DECISIVE)
    ]
    for name in main:
        values = [metrics[name] for metrics in judged if not math.isnan(metrics.get(name, math.nan))]
        if values:
            found[name.replace("val/", "progressive/")] = fmean(values)
    for each in progress.windows:
        own = {name: value for name, value in each["metrics"].items() if name in (*main, "teacher/auc", "published")}
        found |= {f"windows/{each['name']}/{name}": value for name, value in own.items()}
    return found


def told(progress: Progress) -> str:
    """The main metrics of the window that was opened last, for people."""
    shown = ["val/auc", "teacher/auc", "val/gauc", "val/ne", "val/rmse", "val/unseen", "val/age"]
    own = progress.windows[-1]["metrics"]
    text = ""
    if "val/logloss" in own and "val/auc" not in own:
        shown[0] = "val/logloss"
        alike = int(own["val/positives"] > 0)
        text = f"; the labels of all {own['val/samples']:,.0f} rows are {alike}, so the window has no AUC"
    return "  ".join(f"{name} {own[name]:.6g}" for name in shown if name in own) + text
