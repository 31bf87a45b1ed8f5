"""Standard output and error that do not fail when their reader is gone, for a run that still has to save."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import Any, TextIO


class Patient:
    """A text stream whose lines go nowhere once writing them has failed.

    Ctrl-C also ends the ``tee`` that a run writes to, and a terminal that is closed takes no more lines.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        try:
            return self.stream.write(text)
        except OSError:
            self._give_up()
            return len(text)

    def flush(self) -> None:
        try:
            self.stream.flush()
        except OSError:
            self._give_up()

    def _give_up(self) -> None:
        """Put nothing in place of the file, so that what the stream still holds can be written when Python ends."""
        with suppress(OSError, ValueError):  # ValueError: no file lies under the stream
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, self.stream.fileno())
            os.close(nothing)


def outlive_readers() -> None:
    """From now on, printing does not fail when nobody reads what this process prints."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, Patient):
            setattr(sys, name, Patient(stream))


def expect_readers() -> None:
    """Undo ``outlive_readers``."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, Patient):
            setattr(sys, name, stream.stream)
