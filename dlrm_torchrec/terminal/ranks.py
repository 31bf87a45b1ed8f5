"""What the ranks of a host know of each other's failures, through the error files that torchrun gives them.

torchrun names a file for each rank, ``<attempt>/<local rank>/error.json``, and reports what is in the file of the rank
that failed first. Ranks that fail read the files of their neighbours, so that one of them speaks for all.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

POLL_S = 0.02


@dataclass(frozen=True)
class Failure:
    """Why a rank failed: a sentence, and the call stack of a bug; ``lost`` says that another rank failed before it."""

    rank: int
    sentence: str
    stack: str = ""
    lost: bool = False


@dataclass(frozen=True)
class Place:
    """This process among the ranks that torchrun started on this host; alone without torchrun."""

    rank: int
    size: int  # ranks of the run
    local_rank: int
    local_size: int  # ranks of this host
    error_file: Path | None

    @property
    def is_first(self) -> bool:
        return self.local_rank == 0

    def record(self, failure: Failure) -> None:
        """Write the error file, as torchrun reads it: a call stack if there is one, else the sentence."""
        if self.error_file is None:
            return
        second = int(time.time()) + failure.lost  # torchrun looks for the cause in the earliest one
        extra = {"timestamp": str(second), "rank": failure.rank, "lost": failure.lost}
        if failure.stack:
            extra["py_callstack"] = failure.stack
        partial = self.error_file.with_suffix(".partial")
        partial.write_text(json.dumps({"message": {"message": failure.sentence, "extraInfo": extra}}))
        partial.replace(self.error_file)  # neighbours see it complete or not at all

    def failures(self) -> list[Failure]:
        """Those that ranks of this host have recorded so far."""
        found = (_read(path) for path in self._files())
        return sorted((each for each in found if each), key=lambda each: each.rank)

    def wait_for_failures(self, timeout_s: float, *, all_ranks: bool) -> list[Failure]:
        """The failures of this host once all of its ranks, or one that did not lose another, have recorded one."""
        end = time.monotonic() + timeout_s
        while True:
            found = self.failures()
            known = len(found) == len(self._files()) if all_ranks else any(not each.lost for each in found)
            if known or time.monotonic() > end:
                return found
            time.sleep(POLL_S)

    def claims(self, text: str) -> bool:
        """True for the first rank of this host that asks for this text, and for every rank without neighbours."""
        if self.error_file is None or len(self._files()) == 1:
            return True
        digest = sha256(text.encode()).hexdigest()[:16]
        try:
            (self.error_file.parent.parent / f"told-{digest}").touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def _files(self) -> list[Path]:
        """The error files of the ranks of this host, or of this rank where the folders are not torchrun's."""
        assert self.error_file is not None
        if self.error_file.parent.name != str(self.local_rank):
            return [self.error_file]
        attempt = self.error_file.parent.parent
        return [attempt / str(rank) / self.error_file.name for rank in range(self.local_size)]


def place(environment: Mapping[str, str] = os.environ) -> Place:
    """This process's place, by the variables that torchrun sets."""
    file = environment.get("TORCHELASTIC_ERROR_FILE")
    rank, size, local_rank, local_size = (
        int(environment.get(name, default))
        for name, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0), ("LOCAL_WORLD_SIZE", 1))
    )
    return Place(rank, size, local_rank, local_size, Path(file) if file else None)


def has_spoken(error: Mapping[str, Any]) -> bool:
    """Whether this content of an error file was written by a rank that has printed why it failed."""
    message = error.get("message")
    return isinstance(message, dict) and "lost" in message.get("extraInfo", {})


def _read(path: Path) -> Failure | None:
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError):
        return None  # none yet
    if not has_spoken(data):
        return None  # of another program
    message, extra = data["message"]["message"], data["message"]["extraInfo"]
    return Failure(extra["rank"], message, extra.get("py_callstack", ""), lost=extra["lost"])
