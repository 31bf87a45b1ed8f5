"""Lines for people about a long piece of work."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from threading import Lock

Say = Callable[[str], None]
_EVERY_S = 10


def say_on_stderr(text: str) -> None:
    """Print a line on standard error."""
    print(text, file=sys.stderr, flush=True)


def say_nothing(text: str) -> None:  # what other ranks than the first do
    """Print nothing."""


class Report:
    """Says every ten seconds how many of ``num_bytes`` are done; threads may share it."""

    def __init__(self, say: Say, work: str, num_bytes: int) -> None:
        self._say, self._work, self._num_bytes = say, work, num_bytes
        self._done, self._said_s = 0, time.monotonic()
        self._lock = Lock()

    def add(self, num_bytes: int) -> None:
        """Count ``num_bytes`` more."""
        with self._lock:
            self._done += num_bytes
            due = time.monotonic() - self._said_s >= _EVERY_S
            if due:
                self._said_s = time.monotonic()
        if due:
            self._say(f"{self._work}: {self._done / 1e9:.1f} of {self._num_bytes / 1e9:.1f} GB")
