"""The learning rate as a function of the step."""

from __future__ import annotations

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
