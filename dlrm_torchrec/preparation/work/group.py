"""The ranks that prepare one folder together. torchrun or TorchX starts them; they communicate by files in the folder.

Each rank keeps a file that says what it has done, with a number that grows while the rank lives. The ranks need only
RANK and WORLD_SIZE of the environment, and the shared folder.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from iopath.common.file_io import g_pathmgr

from dlrm_torchrec.datasets.prepared import manifest
from dlrm_torchrec.datasets.prepared.files import join, read_json, write_json
from dlrm_torchrec.preparation.work import output_folder
from dlrm_torchrec.preparation.work.recorded_work import FOLDER

_BEAT_S = 0.5
_POLL_S = 0.1
_AGAIN = "run the same command again: finished parts are kept"


class Group:
    """This rank among ``size`` ranks; a rank that is silent for ``timeout_s`` counts as dead."""

    def __init__(self, output: str, timeout_s: float) -> None:
        self.rank, self.size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        self._output, self._timeout_s = output, timeout_s
        self._token = secrets.token_hex(8)
        self._begun = ""  # the token of rank 0; files of an earlier attempt have another token
        self._done: list[str] = []
        self._failed = ""
        self._beats, self._last_beat = 0, 0.0
        self._heard: dict[int, tuple[Any, float]] = {}  # what each rank said last, and since when

    def begin(self, command: dict[str, Any], *, overwrite: bool) -> None:
        """Make the folder ready on rank 0, and wait until all ranks are at this point."""
        output_folder.check(self._output, command, overwrite=overwrite)
        if self.rank == 0:
            output_folder.begin(self._output, command)
            self._begun = self._token
            self._wait(range(self.size), lambda said: bool(said["begun"] == self._begun))
            return
        deadline = time.monotonic() + self._timeout_s
        while not output_folder.is_begun(self._output, command):
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"rank 0 must begin to prepare {self._output} within {self._timeout_s:g} s: got no sign of it; "
                    "start all ranks with the same command, on machines that share the folder"
                )
            time.sleep(_POLL_S)
        self._wait([0], lambda said: bool(said["seen"].get(str(self.rank)) == self._token))
        self._begun = self._heard[0][0]["token"]
        self._say()

    def beat(self) -> None:
        """Tell the other ranks that this rank lives; call it all the time."""
        if self.size > 1 and time.monotonic() - self._last_beat > _BEAT_S:
            self._say()

    def sync(self, phase: str) -> None:
        """Wait until all ranks have done their share of a phase. Raises OSError when one fails or dies."""
        self._tell(phase)
        self._wait(range(self.size), lambda said: said["begun"] == self._begun and phase in said["done"])

    def end(self, phase: str) -> None:
        """``sync`` of the last phase on rank 0; the other ranks wait until rank 0 has written ``dataset.json``."""
        if self.rank == 0:
            self.sync(phase)
            return
        self._tell(phase)
        while not g_pathmgr.exists(join(self._output, manifest.NAME)):
            self._hear(0)
            time.sleep(_POLL_S)

    def fail(self, error: BaseException) -> None:
        """Tell the other ranks why this rank ends."""
        if self.size > 1 and self._begun:
            heard = isinstance(error, ConnectionAbortedError)
            self._failed = str(error) if heard else f"rank {self.rank} failed: {error}"
            with suppress(OSError):  # the folder itself may have failed
                self._say()

    def _tell(self, phase: str) -> None:
        self._done.append(phase)
        if self.size > 1:
            self._say()

    def _wait(self, ranks: Iterable[int], ready: Callable[[dict[str, Any]], bool]) -> None:
        waiting = [rank for rank in ranks if rank != self.rank]
        while waiting:
            self.beat()
            waiting = [rank for rank in waiting if not ((said := self._hear(rank)) and ready(said))]
            if waiting:
                time.sleep(_POLL_S)

    def _hear(self, rank: int) -> dict[str, Any] | None:
        """What a rank said last, in this attempt or an earlier one."""
        said, now = read_json(self._path(rank)), time.monotonic()
        if rank not in self._heard or said != self._heard[rank][0]:
            self._heard[rank] = said, now
        if said and said["failed"] and said["begun"] == self._begun:
            raise ConnectionAbortedError(said["failed"])
        if now - self._heard[rank][1] > self._timeout_s:
            raise TimeoutError(
                f"rank {rank} must give a sign of life every {self._timeout_s:g} s: rank {self.rank} got none; "
                f"find out why, then {_AGAIN}"
            )
        return said if isinstance(said, dict) else None

    def _say(self) -> None:
        self._beats, self._last_beat = self._beats + 1, time.monotonic()
        others = {rank: read_json(self._path(rank)) for rank in range(1, self.size)} if self.rank == 0 else {}
        state = {
            "token": self._token,
            "begun": self._begun,
            "seen": {str(rank): said["token"] for rank, said in others.items() if said},
            "done": self._done,
            "failed": self._failed,
            "beat": self._beats,
        }
        write_json(self._output, self._name(self.rank), state)

    def _path(self, rank: int) -> str:
        return join(self._output, self._name(rank))

    def _name(self, rank: int) -> str:
        return f"{FOLDER}/{output_folder.RANK_FILES}{rank}.json"
