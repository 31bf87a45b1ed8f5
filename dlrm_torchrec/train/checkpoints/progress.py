"""Where a run stands: what an exact resume needs beside tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

# The metrics by which validations are compared: the first that a run has decides, and whether higher is better.
DECISIVE = {"hr@10": True, "auc": True, "rmse": False}


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a run stands: everything beside tensors that an exact resume needs, as JSON."""

    identity: dict[str, Any]  # what defines model and data; a checkpoint of another identity is refused
    lanes: int  # parallel cuts of the data order, fixed for the life of a run
    step: int = 0  # optimizer steps done; the data stream is positioned by it
    last: dict[str, float] = field(default_factory=dict)  # newest validation metrics
    best: dict[str, float] = field(default_factory=dict)  # those of the best validation so far
    best_step: int = 0  # the step of that validation; 0 before the first one
    without_gain: int = 0  # validations since then
    plan: Any = None  # the sharding plan as JSON, for people and for the dry run
    speed: Any = None  # what makes steps faster here, as JSON, chosen when the run began
    windows: list[dict[str, Any]] = field(default_factory=list)  # those begun, of a run over windows; see ``opened``

    @property
    def steps_begun(self) -> int:
        """The steps of all windows that the run has begun."""
        return sum(window["steps"] for window in self.windows)

    @property
    def window_start(self) -> int:
        """The step at which the open window began; without one, that at which the next window begins."""
        return self.steps_begun - self.windows[-1]["steps"] if self.window_open else self.steps_begun

    @property
    def window_open(self) -> bool:
        """Whether steps of the last window are left."""
        return self.step < self.steps_begun

    def opened(self, *, steps: int, metrics: dict[str, float], **told: Any) -> Progress:
        """This progress with one more window, whose first step comes next.

        Args:
            steps: the steps in the window
            metrics: those of the window's rows, by the model of the windows before
            told: what else to keep of the window, as JSON: its name, day and digest
        """
        assert not self.window_open
        return replace(self, windows=[*self.windows, {**told, "steps": steps, "metrics": metrics}])

    def noted(self, metrics: dict[str, float]) -> Progress:
        """This progress with more metrics of the last window."""
        *before, last = self.windows
        return replace(self, windows=[*before, {**last, "metrics": {**last["metrics"], **metrics}}])

    def validated(self, metrics: dict[str, float]) -> Progress:
        """This progress with the validation metrics of its step.

        They are the best ones if their HR@10 is the highest so far; without it, if their AUC is; without either, if
        their RMSE is the lowest.
        """
        name = next(each for each in DECISIVE if each in metrics)
        new, old = metrics[name], self.best.get(name, math.nan)
        better = new > old if DECISIVE[name] else new < old
        if better or (math.isnan(old) and not math.isnan(new)):
            return replace(self, last=metrics, best=metrics, best_step=self.step, without_gain=0)
        return replace(self, last=metrics, without_gain=self.without_gain + 1)

    def ended(self, num_steps: int, early_stop: int = 0) -> bool:
        """Whether all steps are done, or the last ``early_stop`` validations were none better; 0 means never."""
        return self.step >= num_steps or 0 < early_stop <= self.without_gain

    def metrics(self) -> dict[str, float]:
        """The newest validation metrics as ``val/...``, and the best ones that differ from them as ``best/val/...``."""
        newest = {f"val/{name}": value for name, value in self.last.items()}
        best = {f"best/val/{name}": value for name, value in self.best.items() if value != self.last.get(name)}
        return newest | best
