"""How many processes a preparation may use, and how much memory each of them."""

from __future__ import annotations

import os
from dataclasses import dataclass

# Each process needs this for any data: interpreter, NumPy, Arrow and machine code, a block of lines with its columns,
# and row groups that are not written yet.
_WORKER_BYTES = 256 << 20
_MIN_COUNTED_BYTES = 16 << 20
_RAW_BYTES_PER_WORKER = 8 << 20  # with less data, a process costs more time than it saves


@dataclass(frozen=True)
class Budget:
    """A number of ``workers``, and the memory that all of them may use together."""

    workers: int
    memory_bytes: int

    @classmethod
    def of(cls, memory_bytes: int, *, workers: int | None, raw_bytes: int) -> Budget:
        """The budget with ``workers``; None means as many as cores, work and memory allow."""
        if workers is None:
            cores = len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
            workers = min(cores, 1 + raw_bytes // _RAW_BYTES_PER_WORKER)
        return cls(workers=max(1, min(workers, memory_bytes // _WORKER_BYTES)), memory_bytes=memory_bytes)

    @property
    def counted_bytes(self) -> int:
        """Size of a worker's tables of counted values; there is room to copy a growing table and to sort it."""
        return max(_MIN_COUNTED_BYTES, (self.memory_bytes // self.workers - _WORKER_BYTES) // 4)

    @property
    def window_bytes(self) -> int:
        """Size of the rows that a worker shuffles; there is room to copy them twice."""
        return max(_MIN_COUNTED_BYTES, (self.memory_bytes // self.workers - _WORKER_BYTES) // 3)
