"""Warnings of a run that trains on garbage or learns nothing, each said at once, once, and in one sentence."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol, TypeVar

import torch

from dlrm_torchrec.train import fit
from dlrm_torchrec.train.config import Schedule

HUGE = 1e4  # of a dense value: larger ones drown all other columns
_ROWS = 1024  # first rows of a rank, in which a column must not be constant
_SLACK = 1.1  # a training loss is a mean over few rows, so it may be a little worse than that of the base rate


class Data(fit.Data, Protocol):
    """What is known of a data set before training; see ``dlrm_torchrec.datasets.summary.Summary``."""

    @property
    def dense_names(self) -> Sequence[str]: ...

    @property
    def users(self) -> Mapping[str, int]:
        """By split, where rows are candidates of users' histories; else empty."""

    @property
    def again(self) -> Mapping[str, int]:
        """By split, the next items that are left out because their users had them before."""


class DenseBatch(Protocol):
    """The fields of a batch that are looked at."""

    dense_features: torch.Tensor  # (B, D)
    num_rows: int  # without padding


Batch = TypeVar("Batch", bound=DenseBatch)


class Watch:
    """What a run says of its data before the first step, and the warnings that it gives from then on."""

    def __init__(self, say: Callable[[str], None], schedule: Schedule, data: Data) -> None:
        self.say, self.schedule, self.data = say, schedule, data
        self._warned: set[str] = set()

    def columns(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The same batches; warns of dense columns that are huge, or constant in all of the first rows."""
        names, rows = self.data.dense_names, 0
        low, high = torch.full((len(names),), math.inf), torch.full((len(names),), -math.inf)
        for batch in batches:
            if rows < _ROWS and batch.num_rows and names:
                values = batch.dense_features[: batch.num_rows]
                low, high = torch.minimum(low, values.amin(0)), torch.maximum(high, values.amax(0))
                rows += batch.num_rows
                self._judge_columns(low, high, rows)
            yield batch

    def _judge_columns(self, low: torch.Tensor, high: torch.Tensor, rows: int) -> None:
        for name, least, most in zip(self.data.dense_names, low.tolist(), high.tolist(), strict=True):
            if max(-least, most) > HUGE:
                self._warn(
                    f"huge {name}",
                    f"dense column {name!r} has values up to {max(-least, most):.3g}, which drown all other columns; "
                    "set standardise or log1p in its spec and prepare the data again",
                )
            elif least == most and rows >= _ROWS:
                self._warn(
                    f"constant {name}",
                    f"dense column {name!r} is {least:.6g} in all of the first {rows:,} rows; "
                    "if it is constant, remove it from the spec",
                )

    def start(self, step: int, num_steps: int) -> None:
        """Say what is trained on, before the first step."""
        done = f", {step:,} of them done" if step else ""
        self.say("; ".join([*map(self._split, self.data.rows), f"{num_steps:,} steps{done}"]))
        if num_steps < self.schedule.warmup_steps:
            self._warn(
                "short",
                f"the run has {num_steps} steps, fewer than the {self.schedule.warmup_steps} of the warm-up, so it "
                "never learns at the full rate; set a smaller --batch-size, more --epochs, or --schedule.warmup-steps",
            )

    def _split(self, name: str) -> str:
        rows, positives, users = (each.get(name) for each in (self.data.rows, self.data.positives, self.data.users))
        assert rows is not None
        what = "rows" if users is None else f"candidates of {users:,} users"
        share = "" if positives is None else f", {positives:,} positive ({positives / rows:.2%})"
        again = self.data.again.get(name)
        left = f", without {again:,} whose item the user had before" if again else ""
        return f"{name}: {rows:,} {what}{share}{left}"

    def loss(self, first_step: int, last_step: int, loss: float) -> None:
        """Warn when the mean training loss of these steps is worse than that of the base rate, after the warm-up."""
        rows, positives = (each.get("train", 0) for each in (self.data.rows, self.data.positives))
        if first_step <= self.schedule.warmup_steps or not 0 < positives < rows:
            return
        share = positives / rows
        base = -share * math.log(share) - (1 - share) * math.log(1 - share)
        if loss > _SLACK * base:
            self._warn(
                "loss",
                f"the training loss {loss:.4g} of steps {first_step} to {last_step} is worse than {base:.4g}, that of "
                f"answering {share:.2%} for every row; lower the learning rates, or look for huge dense values",
            )

    def validation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Warn when the normalised entropy is above 1 after the warm-up."""
        ne = metrics.get("val/ne", 0.0)
        if step > self.schedule.warmup_steps and ne > 1:
            self._warn(
                "ne",
                f"val/ne {ne:.3f} at step {step} is above 1: answering the share of positives for every row would be "
                "better; train for fewer --epochs, lower the learning rates, or look for huge values in dense columns",
            )

    def _warn(self, kind: str, text: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            self.say(f"warning: {text}")
