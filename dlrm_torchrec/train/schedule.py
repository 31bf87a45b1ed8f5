"""The learning rate as a function of the step."""

from __future__ import annotations

from dataclasses import dataclass

from torchrec.optim.keyed import KeyedOptimizer

_LEARNING_STEPS = 200  # steps after the warm-up in which a model must learn something


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Linear warm-up, a plateau, then polynomial decay to zero (MLPerf DLRM uses power 2)."""

    warmup_steps: int = 0
    decay_start: int = 0  # first step that decays, if decay_steps is not 0
    decay_steps: int = 0  # 0: no decay; -1: until the end of the run
    power: float = 2.0

    def __post_init__(self) -> None:
        if self.decay_steps != 0 and self.decay_start < self.warmup_steps:
            raise ValueError(
                f"decay_start must not lie inside the warm-up of {self.warmup_steps} steps: got {self.decay_start}; "
                "raise it or shorten the warm-up"
            )

    def factor(self, step: int, num_steps: int) -> float:
        """What the learning rate is multiplied by at ``step`` of a run of ``num_steps``, 0..1.

        >>> [Schedule(warmup_steps=4, decay_start=4, decay_steps=2, power=1).factor(s, 9) for s in range(7)]
        [0.25, 0.5, 0.75, 1.0, 1.0, 0.5, 0.0]
        """
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if self.decay_steps != 0 and step >= self.decay_start:
            decay_steps = num_steps - self.decay_start if self.decay_steps < 0 else self.decay_steps
            return float(max(0.0, 1.0 - (step - self.decay_start) / decay_steps) ** self.power)
        return 1.0

    def settled(self, step: int) -> bool:
        """True once a model must have learned something: even a slow start is away from AUC 0.5 by then."""
        return step >= self.warmup_steps + _LEARNING_STEPS


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
