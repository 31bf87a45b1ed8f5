"""Arrays that may outgrow the memory: large ones lie in unnamed files, which the system caches as far as it can."""

from __future__ import annotations

import os
import tempfile
from contextlib import ExitStack
from typing import IO, Any

import numpy as np
import numpy.typing as npt

_HELD_BYTES = 1 << 20  # of an array that is not in a file yet


class Scratch(ExitStack):
    """A context for spools, with unnamed files in ``folder``; None means the system's folder."""

    def __init__(self, folder: str | None) -> None:
        super().__init__()
        self.folder = folder

    def file(self) -> IO[bytes]:
        """A new file, which is closed with the context."""
        return self.enter_context(tempfile.TemporaryFile(dir=self.folder))

    def zeros(self, length: int, dtype: Any) -> npt.NDArray[Any]:
        """An array to be filled."""
        size = length * np.dtype(dtype).itemsize
        if size <= _HELD_BYTES:
            return np.zeros(length, dtype)
        file = self.file()
        # Space is reserved here, because a full disk would kill the process at the first write through the map.
        os.posix_fallocate(file.fileno(), 0, size)
        return np.asarray(np.memmap(file, dtype, "r+"))


class Spool:
    """An array to append to, and then to read."""

    def __init__(self, scratch: Scratch, dtype: Any) -> None:
        self._scratch, self._dtype = scratch, np.dtype(dtype)
        self._held: list[npt.NDArray[Any]] = []
        self._held_bytes = 0
        self._file: IO[bytes] | None = None

    def append(self, values: npt.NDArray[Any]) -> None:
        self._held.append(values.astype(self._dtype))
        self._held_bytes += self._held[-1].nbytes
        if self._held_bytes > _HELD_BYTES:
            self._file = self._file or self._scratch.file()
            self._write(self._file)

    def array(self) -> npt.NDArray[Any]:
        """All that was appended."""
        if self._file is None:
            return np.concatenate([np.empty(0, self._dtype), *self._held])
        self._write(self._file)
        self._file.flush()
        return np.asarray(np.memmap(self._file, self._dtype, "r"))

    def _write(self, file: IO[bytes]) -> None:
        for values in self._held:
            file.write(values.data)
        self._held, self._held_bytes = [], 0
