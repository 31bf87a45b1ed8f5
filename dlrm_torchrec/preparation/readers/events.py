"""Raw columns of logs of events, of which some must not be missing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from dlrm_torchrec import raw_values
from dlrm_torchrec.preparation.readers.columns import Columns
from dlrm_torchrec.preparation.readers.rows import Checks, Ints, Rows
from dlrm_torchrec.raw_values import UnfitTypeError
from dlrm_torchrec.sequence_schema import ACTION

LABEL = "label"  # of the spec of events: all are 0, because labels follow from actions later
MICROS = 10**6  # of a second: the unit of times, so that events of one second keep their order
MOST_MICROS = 1 << 62


@dataclass(frozen=True, kw_only=True)
class EventColumns(Columns):
    """The columns of a spec of events. The feature of the column ``time`` gets whole microseconds as its ids."""

    time: str
    needed: tuple[str, ...]  # the raw columns without which a row is no event
    counted: bool = False  # whether times are numbers of seconds from any start, and not dates or since 1970

    @property
    def names(self) -> list[str]:
        return [name for name in super().names if name != LABEL]

    def rows(self, numbers: Ints, column: Callable[[str], Any], checks: Checks) -> Rows:
        actions = {feature.raw for feature in self.spec.sparse if feature.name == ACTION}

        def read(name: str) -> Any:
            if name == LABEL:
                return pa.array(np.zeros(len(numbers)))
            if name in actions:
                return _ratings(column(name))
            return self._micros(column(name), checks) if name == self.time else column(name)

        rows = super().rows(numbers, read, checks)
        for feature, values in zip(self.spec.sparse, rows.sparse, strict=True):
            if feature.raw in self.needed:
                checks.reject(values.is_null().to_numpy(zero_copy_only=False), f"{feature.raw} is missing")
        return rows

    def _micros(self, column: Any, checks: Checks) -> Any:
        try:
            seconds, bad = (raw_values.numbers if self.counted else raw_values.times)(column, self.form)
        except UnfitTypeError as error:
            raise ValueError(f"time {self.time!r} must hold times: got {error}; name another column") from error
        with np.errstate(invalid="ignore"):
            bad = bad | ~(np.isnan(seconds) | ((seconds >= 0) & (seconds * MICROS < MOST_MICROS)))
        checks.reject(bad, f"{self.time} is not a {'number from 0 on' if self.counted else 'time from 1970 on'}")
        missing = np.isnan(seconds) | bad
        return pa.array(np.where(missing, 0, np.round(seconds * MICROS)).astype(np.int64), mask=missing)


def _ratings(actions: Any) -> Any:
    """Actions of which typed fractions, such as ratings in halves, are the texts that a file of text has for them."""
    kind = actions.type
    fractions = pa.types.is_float32(kind) or pa.types.is_float64(kind) or pa.types.is_decimal(kind)
    return actions.cast(pa.string()) if fractions else actions
