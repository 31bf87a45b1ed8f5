"""What may be set of training: optimizers, learning rate, checkpoints, log. No torch, so that ``--help`` is quick."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from tyro.conf import arg

OptimizerKind = Literal["sgd", "adagrad", "rowwise_adagrad", "adam", "dense_adam"]
# How a run computes: auto measures what is faster here, exact is float32 without a compiler, with FBGEMM's updates; the
# others are parts that can be combined. On a CPU, tf32 changes nothing.
Speed = tuple[Literal["auto", "exact", "tf32", "bf16", "compile", "sorted"], ...]
TrackerName = Literal["none", "wandb", "mlflow"]
_LEARNING_STEPS = 200  # steps after the warm-up in which a model must learn something


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """One optimizer; ``eps`` means the same for fused and dense kernels."""

    kind: OptimizerKind
    """The update rule; rowwise_adagrad keeps one moment per row, dense_adam also moves rows that a batch lacks."""
    lr: float
    """Learning rate after the warm-up; 0 means by the number of rows."""
    eps: float = 1e-8
    """Added to the root of the second moment; 0 means by the number of rows; sgd does not use it."""
    weight_decay: float = 0.0
    """Strength of the L2 penalty; 0 means none, -1 by the number of rows."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of the two moments of adam and dense_adam; other optimizers do not use them."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(OptimizerKind):
            kinds = sorted(get_args(OptimizerKind))
            raise ValueError(f"optimizer kind must be one of {kinds}: got {self.kind!r}; name one of them")
        if self.lr < 0 or self.eps < 0:
            raise ValueError(
                f"learning rate and eps must be positive, or 0 to follow from the number of rows: got {self.lr} and "
                f"{self.eps}; try 0.01 and 1e-8"
            )


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Linear warm-up, a plateau, then polynomial decay to zero (MLPerf DLRM uses power 2)."""

    warmup_steps: int = 0
    """Steps in which the learning rate rises from 0 to its full value; 0 means no warm-up, -1 a tenth of all."""
    decay_start: int = 0
    """First step of the decay; -1 means the end of the warm-up; it has no effect when decay_steps is 0."""
    decay_steps: int = 0
    """Length of the decay in steps; 0 means no decay, -1 means until the end of the run."""
    power: float = 2.0
    """Exponent of the decay; 1 is a straight line down to 0."""
    falls: tuple[int, ...] = ()
    """Steps from which the learning rate is a tenth of what it was before; none means that it does not fall."""

    def __post_init__(self) -> None:
        if self.decay_steps != 0 and -1 < self.decay_start < self.warmup_steps:
            raise ValueError(
                f"decay_start must not lie inside the warm-up of {self.warmup_steps} steps: got {self.decay_start}; "
                "raise it or shorten the warm-up"
            )
        if any(fall < 1 for fall in self.falls):
            raise ValueError(
                f"steps at which the learning rate falls must be at least 1: got {self.falls}; name later steps"
            )

    def factor(self, step: int, num_steps: int) -> float:
        """The share of the full learning rate at ``step`` of a run of ``num_steps``, 0..1.

        >>> [Schedule(warmup_steps=4, decay_start=4, decay_steps=2, power=1).factor(s, 9) for s in range(7)]
        [0.25, 0.5, 0.75, 1.0, 1.0, 0.5, 0.0]
        """
        fallen = 0.1 ** sum(step >= fall for fall in self.falls)
        if step < self.warmup_steps:
            return fallen * (step + 1) / self.warmup_steps
        if self.decay_steps != 0 and step >= self.decay_start:
            decay_steps = num_steps - self.decay_start if self.decay_steps < 0 else self.decay_steps
            return fallen * float(max(0.0, 1.0 - (step - self.decay_start) / decay_steps) ** self.power)
        return fallen

    def settled(self, step: int) -> bool:
        """True once a model must have learned something: even a slow start is away from AUC 0.5 by then."""
        return step >= self.warmup_steps + _LEARNING_STEPS


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When the run is saved, and how."""

    every: int = 0
    """Steps between checkpoints; 0 means by time."""
    minutes: float = 10
    """Minutes between checkpoints by time, which never take more than 2 % of a run; 0 means only at the end."""
    keep: int = 2
    """Number of checkpoints to keep; older ones are removed."""
    best: bool = False
    """Also save after each best validation so far, and keep that checkpoint beside the newest ones."""
    early_stop: Annotated[int, arg(aliases=["--early-stop"])] = 0
    """End the run after so many validations in a row that are not the best so far; 0 means never."""
    asynchronous: bool = False
    """Write checkpoints in the background while training continues, from a copy in the host's memory."""
    verify: Annotated[bool, arg(aliases=["--verify"])] = False
    """Compare all prepared data with their checksums before training, not beside it."""

    def __post_init__(self) -> None:
        if self.keep < 1:
            raise ValueError(f"number of checkpoints to keep must be at least 1: got {self.keep}; raise it")
        for what, value, zero in (
            ("steps between checkpoints", self.every, "by time"),
            ("minutes between checkpoints", self.minutes, "only at the end"),
            ("validations without gain", self.early_stop, "no early stop"),
        ):
            if not 0 <= value < math.inf:
                raise ValueError(f"{what} must be at least 0: got {value}; 0 means {zero}")


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """What is written about the run."""

    every: int = 50
    """Steps between log records."""
    tensorboard: bool = False
    """Also write TensorBoard events into the run folder."""
    track: TrackerName = "none"
    """Also record the run in W&B or MLflow, whose library must be installed; none means only in the run folder."""
    profile: tuple[int, int] | None = None
    """First and last step of a torch.profiler trace of every rank; None means no trace."""
    timed: tuple[int, int] | None = None
    """First and last step whose parts are timed one by one, written to step_times.json; None means no timing."""
    debug: Annotated[bool, arg(aliases=["--debug"])] = False
    """Show the call stack of every error, also of those that one sentence explains."""

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"steps between log records must be at least 1: got {self.every}; raise it")
        for name, steps in (("profiled", self.profile), ("timed", self.timed)):
            if steps is not None and not 1 <= steps[0] <= steps[1]:
                raise ValueError(
                    f"{name} steps must be a first and a last one, from 1: got {steps}; name two steps in order"
                )
