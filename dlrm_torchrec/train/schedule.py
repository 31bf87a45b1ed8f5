"""The learning rate as a function of the step."""

from __future__ import annotations

from dataclasses import dataclass

from torchrec.optim.keyed import KeyedOptimizer

_LEARNING_STEPS = 200  # after the warm-up


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Linear warm-up, a plateau, then polynomial decay to zero (MLPerf DLRM uses power 2)."""

    warmup_steps: int = 0
    decay_start: int = 0  # first step that decays; only read when decay_steps > 0
    decay_steps: int = 0  # 0: no decay
    power: float = 2.0

    def __post_init__(self) -> None:
        if self.decay_steps > 0 and self.decay_start < self.warmup_steps:
            raise ValueError(
                f"decay_start must not lie inside the warm-up of {self.warmup_steps} steps: got {self.decay_start}; "
                "raise it or shorten the warm-up"
            )

    def factor(self, step: int) -> float:
        """What the learning rate is multiplied by at ``step``, 0..1.

        >>> [Schedule(warmup_steps=4, decay_start=4, decay_steps=2, power=1).factor(s) for s in range(7)]
        [0.25, 0.5, 0.75, 1.0, 1.0, 0.5, 0.0]
        """
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if self.decay_steps > 0 and step >= self.decay_start:
            return float(max(0.0, 1.0 - (step - self.decay_start) / self.decay_steps) ** self.power)
        return 1.0

    def settled(self, step: int) -> bool:
        """True once a model must have learned something: even a slow start is away from AUC 0.5 by then."""
        return step >= self.warmup_steps + _LEARNING_STEPS


class ScheduledLearningRate:
    """Sets every learning rate from the step alone, so that there is no state to save."""

    def __init__(self, optimizer: KeyedOptimizer, schedule: Schedule) -> None:
        self.schedule = schedule
        self.groups = [(group, group["lr"]) for group in optimizer.param_groups]

    def set(self, step: int) -> None:
        """Take effect at ``step``: call it before the step's ``zero_grad``, where fused tables read it."""
        factor = self.schedule.factor(step)
        for group, base in self.groups:
            group["lr"] = base * factor
