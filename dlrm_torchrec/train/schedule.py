"""The learning rate as a function of the step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torchrec.optim.keyed import KeyedOptimizer

from dlrm_torchrec.train.config import Schedule


class ScheduledLearningRate:
    """Computes every learning rate from the step alone, so there is no state to save."""

    def __init__(self, optimizer: KeyedOptimizer, schedule: Schedule, num_steps: int) -> None:
        self.schedule, self.num_steps = schedule, num_steps
        self.groups = [(group, group["lr"]) for group in optimizer.param_groups]

    def set(self, step: int) -> None:
        """Set the learning rates of ``step``; call it before the step's ``zero_grad``, where fused tables read them."""
        factor = self.schedule.factor(step, self.num_steps)
        for group, base in self.groups:
            group["lr"] = base * factor


def learning_rates(run: Mapping[str, Any], step: int, num_steps: int) -> dict[str, float]:
    """The learning rates in step ``step``, from 1, of a run with the options ``run``; none if they lack a schedule.

    >>> schedule = {"warmup_steps": 10}
    >>> learning_rates({"schedule": schedule, "sparse": {"lr": 0.5}, "dense": {"lr": 0.1}}, step=5, num_steps=100)
    {'lr/tables': 0.25, 'lr/dense': 0.05}
    """
    if not {"schedule", "sparse", "dense"} <= run.keys():
        return {}
    factor = Schedule(**run["schedule"]).factor(step - 1, num_steps)
    return {"lr/tables": factor * run["sparse"]["lr"], "lr/dense": factor * run["dense"]["lr"]}
