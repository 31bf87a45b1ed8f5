"""Whether prepared files are still what preparation wrote: a run compares them with the checksums of their manifest."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Protocol

from dlrm_torchrec.datasets.prepared.files import digest

_NICE = 19  # the least share of a core, beside threads that train


class Place(Protocol):
    """This process among those of its host."""

    @property
    def local_rank(self) -> int: ...

    @property
    def local_size(self) -> int: ...


class Verification:
    """Compares files with their SHA-256 once, in a thread that leaves the cores to training.

    Each host verifies all files, because each may have its own copy; its ranks share them. A file without a checksum
    cannot be verified; ``say`` is told once how many there are.

    Args:
        files: place and SHA-256 of each file
        world: which of the files this process takes
        say: prints a line for people
    """

    def __init__(self, files: Sequence[tuple[str, str | None]], world: Place, say: Callable[[str], None]) -> None:
        known = [(path, expected) for path, expected in files if expected is not None]
        if len(known) < len(files):
            say(
                f"warning: {len(files) - len(known)} of {len(files)} data files have no sha256 in dataset.json, so "
                "that nothing would notice if they changed; add it to each file"
            )
        self._files = known[world.local_rank :: world.local_size]
        self._fault = ""
        self._closed = False
        self._thread = threading.Thread(target=self._compare, name="verify", daemon=True)
        self._thread.start()

    def fault(self) -> str:
        """A sentence that names a file that is not what it was; empty as long as none is known."""
        return self._fault

    def wait(self, timeout_s: float) -> bool:
        """Whether all files have been compared, or one found damaged, within ``timeout_s`` seconds."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def close(self) -> None:
        """End, whatever has been compared by then."""
        self._closed = True

    def _compare(self) -> None:
        if sys.platform == "linux":  # where a thread has its own priority
            with suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        for path, expected in self._files:
            try:
                _, found = digest(path, self._check_open)
            except _Closed:
                return
            except Exception as error:  # whatever a handler of iopath raises
                self._fault = f"file {path} must be readable: got '{error}'; restore it, or prepare the data again"
                return
            if found != expected.lower():
                self._fault = (
                    f"file {path} must have the SHA-256 of dataset.json, {expected[:12]}...: got {found[:12]}...; its "
                    "rows are not those that were prepared, so restore the file or prepare the data again, and use a "
                    "new --run-dir if this run has trained on it"
                )
                return

    def _check_open(self, _bytes: int) -> None:
        if self._closed:
            raise _Closed


class _Closed(Exception):  # noqa: N818  # it is no error
    """Nobody waits for the result."""
