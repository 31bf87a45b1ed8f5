"""Shuffles rows within windows that fit the memory."""

from __future__ import annotations

import pyarrow as pa

from dlrm_torchrec.datasets.prepared.writer import SplitWriter
from dlrm_torchrec.datasets.random.permutation import permutation


class ShufflingWriter:
    """Passes the rows of each window of ``window_rows`` on to ``writer``, in an order that only ``seed`` decides."""

    def __init__(self, writer: SplitWriter, *, window_rows: int, seed: tuple[int, ...]) -> None:
        self._writer, self._window_rows, self._seed = writer, window_rows, seed
        self._waiting: list[pa.Table] = []
        self._held = self._window = 0

    def write(self, table: pa.Table) -> None:
        while self._held + table.num_rows >= self._window_rows:
            left = self._window_rows - self._held
            self._waiting.append(table.slice(0, left))
            self.flush()
            table = table.slice(left)
        self._waiting.append(table)
        self._held += table.num_rows

    def flush(self) -> None:
        """End the window here."""
        if self._waiting:
            rows = pa.concat_tables(self._waiting).combine_chunks()
            order = permutation(rows.num_rows, *self._seed, self._window)
            self._waiting, self._held, self._window = [], 0, self._window + 1
            self._writer.write(rows.take(pa.array(order)))
