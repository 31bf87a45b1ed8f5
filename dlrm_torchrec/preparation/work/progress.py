"""Shows the progress of a preparation: a bar on a terminal, otherwise a line every few seconds."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

from tqdm import tqdm

_LINE_S = 10.0  # between lines without a terminal
_BAR = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}, {remaining} left{postfix}"


class Progress:
    """Counts rows and bytes of raw data of one pass; the rate is the rate of this process."""

    def __init__(self, title: str, total_bytes: int) -> None:
        self._title, self._total_bytes = title, max(1, total_bytes)
        self._rows = self._bytes = 0
        self._begin = self._said = time.monotonic()
        self._bar: tqdm[Any] | None = None
        if sys.stderr.isatty():
            self._bar = tqdm(desc=title, total=self._total_bytes, bar_format=_BAR, dynamic_ncols=True)

    def add(self, rows: int, raw_bytes: int) -> None:
        """Count rows that were read, and their bytes in the file; a pass may read no rows."""
        self._rows += rows
        self._bytes = min(self._bytes + raw_bytes, self._total_bytes)
        if self._bar is not None:
            self._bar.set_postfix_str(f"{self._rows_per_s():,.0f} rows/s" if self._rows else "", refresh=False)
            self._bar.update(self._bytes - self._bar.n)
        elif time.monotonic() - self._said >= _LINE_S:
            self._said = time.monotonic()
            print(self._line(), file=sys.stderr, flush=True)

    def _rows_per_s(self) -> float:
        return self._rows / max(1e-9, time.monotonic() - self._begin)

    def _line(self) -> str:
        elapsed_s = time.monotonic() - self._begin
        left = f"{elapsed_s * (self._total_bytes / self._bytes - 1):,.0f} s left" if self._bytes else ""
        rate = f"{self._rows:,} rows, {self._rows_per_s():,.0f} rows/s" if self._rows else ""
        parts = [part for part in (f"{self._bytes / self._total_bytes:.0%}", rate, left) if part]
        return f"{self._title}: {', '.join(parts)}"

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.close()
