"""What may be set of the windows that a model is trained on one after another. No torch, so that --help is quick."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from dlrm_torchrec.datasets.synthetic.specs import Drift

_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}


@dataclass(frozen=True, kw_only=True)
class TimesConfig:
    """How long windows of time are, and what happens when one is missing."""

    days: int = 30
    """Number of synthetic days."""
    length: str = "1d"
    """Length of a window of time: a whole number of s, m, h, d or w."""
    missing: Literal["refuse", "skip"] = "refuse"
    """What to do without a window between others, or with one that comes late: refuse ends the run, skip goes on."""

    def __post_init__(self) -> None:
        if self.days < 1:
            raise ValueError(f"number of days must be at least 1: got {self.days}; raise it")
        if not re.fullmatch(r"[1-9][0-9]*[smhdw]", self.length):
            raise ValueError(
                f"length of a window must be a whole number of s, m, h, d or w: got {self.length!r}; try 1d"
            )

    @property
    def microseconds(self) -> int:
        """The length of a window of time.

        >>> TimesConfig(length="2h").microseconds
        7200000000
        """
        return int(self.length[:-1]) * _SECONDS[self.length[-1]] * 1_000_000

    @property
    def by_time(self) -> bool:
        """Whether windows are cut by time, so that their length tells which ones follow each other."""
        return True


@dataclass(frozen=True, kw_only=True)
class SequenceWindowsConfig(TimesConfig):
    """Which windows of histories there are, and what happens when one is missing."""

    since: str = ""
    """Name of the first window; what happened before it is read in histories. Empty means the earliest."""


@dataclass(frozen=True, kw_only=True)
class WindowsConfig(TimesConfig):
    """Which rows a window holds, and what happens when one is missing."""

    drift: Drift = Drift()
    """How synthetic days differ from each other."""
    time: str = ""
    """Column of times of one prepared folder, which is cut by it; empty means one prepared folder for each window."""

    @property
    def by_time(self) -> bool:
        return bool(self.time)
