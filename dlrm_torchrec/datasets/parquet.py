"""Batches from prepared Parquet files: each rank decodes only the row groups that it needs, ahead of training."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
from iopath.common.file_io import g_pathmgr

from dlrm_torchrec.datasets.bags import Columns
from dlrm_torchrec.datasets.batch import Batch
from dlrm_torchrec.datasets.decode import check_schema, read_row_group
from dlrm_torchrec.datasets.jagged import to_batch
from dlrm_torchrec.datasets.manifest import DataFile, Manifest, join
from dlrm_torchrec.datasets.order import Order, Visit
from dlrm_torchrec.datasets.stream import Ranks, check_start_step


class RowGroup(NamedTuple):
    path: str
    metadata: pq.FileMetaData  # of the whole file, so that its footer is read once
    number: int  # of the row group in its file


class ParquetStream:
    """Batches of one split of a prepared folder, every row once per epoch, each epoch in its own seeded order.

    ``lanes`` fixes how the rows are spread over the global batches (see ``order``). It must stay what it was when the
    run began, and is then best equal to the number of ranks; the default is ``world_size``.
    """

    def __init__(
        self,
        folder: str,
        split: str,
        *,
        global_batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        shuffle: bool,
        epochs: int = 1,
        lanes: int | None = None,
    ) -> None:
        manifest = Manifest.load(folder)
        if split not in manifest.splits:
            raise ValueError(
                f"split must be one that {folder} holds: got {split!r} of {sorted(manifest.splits)}; prepare it"
            )
        self.spec = manifest.spec
        files = manifest.splits[split].files
        self._groups = [group for file in files for group in self._open(join(folder, file.path), file)]
        self._order = Order(
            group_rows=np.array([g.metadata.row_group(g.number).num_rows for g in self._groups], dtype=np.int64),
            epochs=epochs,
            lanes=world_size if lanes is None else lanes,
            ranks=Ranks(global_batch_size, rank, world_size),
            seed=seed,
            shuffle=shuffle,
        )
        self.num_steps = epochs * self._order.steps_per_epoch

    def batches(self, start_step: int = 0) -> Iterator[Batch]:
        """This rank's share of the global batches ``start_step`` .. ``num_steps - 1``.

        One thread decodes ahead, as many row groups as the current batch touches. An error in it is raised here.
        """
        check_start_step(start_step, self.num_steps)
        ahead = self._visits(start_step)
        decoded: dict[Visit, Future[Columns]] = {}
        used: set[Visit] = set()
        thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="read-ahead")
        try:
            for share, pieces in self._order.steps(start_step):
                current = {piece.visit for piece in pieces}
                for visit in used - current:
                    del decoded[visit]
                used = current
                while not current <= decoded.keys() or len(decoded) < 2 * len(current):
                    following = next(ahead, None)
                    if following is None:
                        break
                    decoded[following] = thread.submit(self._decode, following)
                columns = [decoded[visit].result().slice(first, last) for visit, first, last in pieces]
                yield to_batch(self.spec, columns, share)
        finally:
            thread.shutdown(cancel_futures=True)

    def _visits(self, start_step: int) -> Iterator[Visit]:
        """The row groups in the order in which ``batches`` first needs them."""
        before: set[Visit] = set()
        for _, pieces in self._order.steps(start_step):
            for piece in pieces:
                if piece.visit not in before:
                    yield piece.visit
            before = {piece.visit for piece in pieces}

    def _decode(self, visit: Visit) -> Columns:
        path, metadata, number = self._groups[visit.group]
        with g_pathmgr.open(path, "rb") as raw:
            columns = read_row_group(pq.ParquetFile(raw, metadata=metadata), number, self.spec, path)
        rows = self._order.rows(visit)
        return columns if rows is None else columns.take(rows)

    def _open(self, path: str, file: DataFile) -> list[RowGroup]:
        with g_pathmgr.open(path, "rb") as raw:
            parquet = pq.ParquetFile(raw)
        check_schema(parquet.schema_arrow, self.spec, path)
        metadata = parquet.metadata
        if metadata.num_rows != file.rows:
            raise ValueError(
                f"file {path} must have the {file.rows} rows of its manifest: got {metadata.num_rows}; prepare it again"
            )
        return [RowGroup(path, metadata, number) for number in range(metadata.num_row_groups)]
