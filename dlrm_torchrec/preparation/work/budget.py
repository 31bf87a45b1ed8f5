"""What a preparation may use: how many processes, and what each of them may keep in memory."""

from __future__ import annotations

import os
from dataclasses import dataclass

# Of a process, whatever the data: interpreter, NumPy, Arrow and machine code, a block of lines with its columns, row
# groups on their way to a file.
_WORKER_BYTES = 256 << 20
_MIN_COUNTED_BYTES = 16 << 20
_RAW_BYTES_PER_WORKER = 8 << 20  # below, a process costs more time than it saves


@dataclass(frozen=True)
class Budget:
    """A number of ``workers`` and the memory that all of them may take."""

    workers: int
    memory_bytes: int

    @classmethod
    def of(cls, memory_bytes: int, *, workers: int | None, raw_bytes: int) -> Budget:
        """The budget with ``workers``, or else as many as there are cores and work for, as far as memory allows."""
        if workers is None:
            cores = len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
            workers = min(cores, 1 + raw_bytes // _RAW_BYTES_PER_WORKER)
        return cls(workers=max(1, min(workers, memory_bytes // _WORKER_BYTES)), memory_bytes=memory_bytes)

    @property
    def counted_bytes(self) -> int:
        """Size of the tables of counted values of a worker: one is copied while it grows, and sorted in the end."""
        return max(_MIN_COUNTED_BYTES, (self.memory_bytes // self.workers - _WORKER_BYTES) // 4)

    @property
    def window_bytes(self) -> int:
        """Size of the rows that a worker shuffles: they are copied twice."""
        return max(_MIN_COUNTED_BYTES, (self.memory_bytes // self.workers - _WORKER_BYTES) // 3)
