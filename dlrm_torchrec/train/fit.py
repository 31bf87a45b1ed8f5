"""Settings that follow from the number of training rows. No torch, so that ``--help`` is quick.

Few rows need small steps over and over, and a small model with strong decay; many rows are seen once, in large batches.
``benchmarks/practice.py`` measures what the numbers here give against logistic regression. The rows of histories are
candidates: what users did is told from what they did before, which a model finds only after some hundred steps, and
large steps of tables have learned single users by heart long before that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import Field, dataclass, replace
from typing import Any, ClassVar, Protocol, TypeVar

# What a setting is when it is to follow from the data.
AUTOMATIC: dict[str, Any] = {
    "batch_size": 0,
    "epochs": 0,
    "top": (),
    "sparse.lr": 0.0,
    "sparse.eps": 0.0,
    "dense.lr": 0.0,
    "dense.weight_decay": -1.0,
    "schedule.warmup_steps": -1,
    "schedule.decay_start": -1,
}
_ALIKE = {"adagrad", "rowwise_adagrad"}  # optimizers that take the same learning rates
LEAST_BATCH, LARGEST_BATCH = 32, 2048
_SHARE = 0.2  # of positives, below which the positives decide how much data there is


@dataclass(frozen=True)
class Size:
    """What suits data sets of fewer than ``rows`` rows."""

    rows: float
    epochs: int
    sparse_lr: float
    eps: float  # of the tables' optimizer, times the batch: larger means that rare ids take smaller steps
    dense_lr: float
    decay: float = 24.0  # of dense parameters, times the rows: as strong as so many rows
    small: bool = False  # whether the top MLP is SMALL_TOP


SIZES = (
    Size(1_500, epochs=8, sparse_lr=0.03, eps=0.1, dense_lr=0.005, decay=8.0, small=True),
    Size(3_000, epochs=5, sparse_lr=0.07, eps=0.3, dense_lr=0.004, decay=8.0, small=True),
    Size(6_000, epochs=5, sparse_lr=0.07, eps=0.3, dense_lr=0.002),
    Size(12_000, epochs=3, sparse_lr=0.07, eps=0.3, dense_lr=0.002),
    Size(40_000, epochs=2, sparse_lr=0.07, eps=0.3, dense_lr=0.002),
    Size(100_000, epochs=2, sparse_lr=0.1, eps=0.3, dense_lr=0.004),
    Size(1_000_000, epochs=1, sparse_lr=0.1, eps=0.3, dense_lr=0.004),
    Size(math.inf, epochs=1, sparse_lr=0.1, eps=0.3, dense_lr=0.01),
)
SMALL_TOP = (16, 1)
EVENTS = 40  # of a synthetic user on average: a recipe's own numbers suit as many candidates as all of them have
LEAST_SAMPLES = 8  # of a batch
MOST_DECAY = 0.003


@dataclass(frozen=True)
class Scarce:
    """What suits a share, below 1, of the candidates that a recipe's own numbers suit."""

    batch: float  # times samples / the root of candidates
    epochs: float  # the power of 1 / share by which they grow
    sparse_lr: float  # the power of the share by which it falls
    decay: float = 0.0  # of dense parameters, times the square of the candidates
    dense_lr: float = 1 / 8


LIKES = Scarce(batch=2, epochs=1 / 2, sparse_lr=1, decay=5e4)
NEXT_ITEMS = Scarce(batch=8, epochs=1 / 4, sparse_lr=1 / 3)  # whose tables are told from each other, too


class Config(Protocol):
    """Any dataclass whose fields have defaults; those in ``AUTOMATIC`` may follow from the data."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]


class Data(Protocol):
    """What is known of a data set before training; see ``dlrm_torchrec.datasets.summary.Summary``."""

    @property
    def rows(self) -> Mapping[str, int]:
        """By split; empty for synthetic data."""

    @property
    def positives(self) -> Mapping[str, int]:
        """By split, if they were counted."""

    @property
    def samples(self) -> int:
        """Of the split ``train``, where rows are candidates that share histories; else 0."""


AnyConfig = TypeVar("AnyConfig", bound=Config)


def automatic(config: AnyConfig) -> AnyConfig:
    """The config with every setting that may follow from the data marked to do so."""
    for name, mark in AUTOMATIC.items():
        if _get(config, name) is not None:
            config = _set(config, name, mark)
    return config


def marks(config: Config) -> list[str]:
    """The settings that are to follow from the data."""
    return [name for name, mark in AUTOMATIC.items() if _get(config, name) == mark]


def refuse_marks(config: Config) -> None:
    """Raises ValueError when a setting is to follow from the data, for a run that does not know how many will come."""
    for name in marks(config):
        raise ValueError(
            f"{name} must be set for a run over windows: got {AUTOMATIC[name]}, which means by the number of rows, and "
            "more of them come with each window; set it, or leave it out"
        )


def fit_to_rows(config: AnyConfig, data: Data) -> tuple[AnyConfig, str]:
    """The config with numbers in place of its marks, and a line for each of them that says why.

    Synthetic data have new rows for ever, so they get the numbers that the config has by default, without a word. A
    rare label counts as fewer rows: five for each row of the rarer class. Raises ValueError when a learning rate is
    marked, but its optimizer is another than by default, and when an early stop is asked for without validations.
    """
    early_stop = _get(config, "checkpoint.early_stop")
    if early_stop and _get(config, "eval_every") == 0:
        raise ValueError(
            f"--early-stop must have validations to count: got {early_stop} with eval_every 0, which validates only at "
            "the end; set --eval-every to the steps between two of them"
        )
    marked = marks(config)
    rows = data.rows.get("train", 0)
    if not data.rows:
        for name in marked:
            config = _set(config, name, _get(type(config)(), name))
        return config, ""
    if not marked:
        return config, ""
    if not rows:
        raise ValueError(
            f"data must have rows in a split 'train' for {marked[0]} to follow from: got {dict(data.rows)}; set it"
        )
    for name in ("sparse", "dense"):
        kind, usual = (_get(each, f"{name}.kind") for each in (config, type(config)()))
        if f"{name}.lr" in marked and not {kind, usual} <= _ALIKE and kind != usual:
            raise ValueError(
                f"{name}.lr must be set with {name}.kind {kind!r}: got none, and the rates that follow from the number "
                f"of rows are those of {usual!r}; set it"
            )
    fitting = _Fitting(config, marked)
    if data.samples:
        _fit_histories(fitting, LIKES if data.positives else NEXT_ITEMS, rows=rows, samples=data.samples)
    else:
        _fit_rows(fitting, rows, data.positives.get("train", rows))
    steps = fitting.get("epochs") * -(-(data.samples or rows) // fitting.get("batch_size"))
    warmup = fitting.choose("schedule.warmup_steps", steps // 10, f"a tenth of {steps:,} steps")
    fitting.choose("schedule.decay_start", warmup, "the end of the warm-up")
    return fitting.config, "\n".join(fitting.reasons)


class _Fitting:
    """A config whose marks are replaced one by one, and the reasons."""

    def __init__(self, config: Any, marked: list[str]) -> None:
        self.config, self.usual = config, type(config)()
        self.reasons: list[str] = []
        self._marked = marked

    def get(self, name: str) -> Any:
        return _get(self.config, name)

    def choose(self, name: str, value: Any, why: str) -> Any:
        """The value of a setting: ``value`` if it is marked, else its own."""
        if name in self._marked:
            self.config = _set(self.config, name, value)
            shown = value if isinstance(value, (int, tuple)) else format(value, ".3g")
            self.reasons.append(f"{name} {shown}: {why}")
        return self.get(name)


def _fit_rows(fitting: _Fitting, rows: int, positives: int) -> None:
    rarer = min(positives, rows - positives) or rows  # rows of one class get their negatives later
    worth = min(rows, round(rarer / _SHARE))
    told = f"{rows:,} rows" if worth == rows else f"{rows:,} rows with a rare label, worth {worth:,}"
    size = next(each for each in SIZES if worth < each.rows)
    below = f"{told}: data of fewer than {size.rows:,.0f}" if size.rows < math.inf else told
    batch = fitting.choose(
        "batch_size",
        min(max(_power_of_two(rows**0.5), LEAST_BATCH), LARGEST_BATCH),
        f"the power of two up to the square root of {rows:,} rows, from {LEAST_BATCH} to {LARGEST_BATCH}",
    )
    fitting.choose("epochs", size.epochs, below)
    fitting.choose("top", SMALL_TOP if size.small else _get(fitting.usual, "top"), below)
    fitting.choose("sparse.lr", size.sparse_lr, below)
    fitting.choose("sparse.eps", size.eps / batch, f"{size.eps} / batch size, so that rare ids take small steps")
    fitting.choose("dense.lr", size.dense_lr, below)
    fitting.choose("dense.weight_decay", size.decay / worth, f"{size.decay:.0f} / rows, for {told}")


def _fit_histories(fitting: _Fitting, scarce: Scarce, *, rows: int, samples: int) -> None:
    usual = fitting.usual
    share = min(1.0, rows / (EVENTS * usual.rows))
    told = f"{rows:,} candidates in {samples:,} samples"
    of_usual = f"for {share:.2%} of the candidates that {{}} suits"
    fitting.choose(
        "batch_size",
        min(max(_power_of_two(scarce.batch * samples / rows**0.5), LEAST_SAMPLES), usual.batch_size),
        f"the power of two up to {scarce.batch} x samples / root of candidates, {LEAST_SAMPLES} to {usual.batch_size}, "
        f"for {told}",
    )
    fitting.choose("epochs", round(usual.epochs * share**-scarce.epochs), of_usual.format(usual.epochs))
    fitting.choose("sparse.lr", usual.sparse.lr * share**scarce.sparse_lr, of_usual.format(usual.sparse.lr))
    fitting.choose("sparse.eps", usual.sparse.eps, "as for many candidates")
    fitting.choose("dense.lr", usual.dense.lr * share**scarce.dense_lr, of_usual.format(usual.dense.lr))
    decay = min(scarce.decay / rows**2, MOST_DECAY) if share < 1 else 0.0
    why = f"{scarce.decay:,.0f} / the square of candidates up to {MOST_DECAY}, if they are scarce"
    fitting.choose("dense.weight_decay", decay, why)


def _power_of_two(most: float) -> int:
    """The greatest power of two up to ``most``, which is at least 1."""
    return int(2 ** math.floor(math.log2(max(1.0, most))))


def _get(config: Any, name: str) -> Any:
    """The value of a setting with a dotted name; None if there is no such setting."""
    for part in name.split("."):
        config = getattr(config, part, None)
    return config


def _set(config: Any, name: str, value: Any) -> Any:
    first, _, rest = name.partition(".")
    return replace(config, **{first: _set(getattr(config, first), rest, value) if rest else value})
