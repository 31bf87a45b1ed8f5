"""Batches from prepared Parquet files. Each rank decodes only the row groups that it needs, before training does."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import NamedTuple
from weakref import WeakValueDictionary

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from iopath.common.file_io import g_pathmgr
from numpy.typing import NDArray

from dlrm_torchrec.datasets.ahead import BATCHES_AHEAD, ahead
from dlrm_torchrec.datasets.batch import Batch
from dlrm_torchrec.datasets.block import Block, joined
from dlrm_torchrec.datasets.jagged import to_batch
from dlrm_torchrec.datasets.prepared.decode import check_schema, read_row_group
from dlrm_torchrec.datasets.prepared.expand import Expander
from dlrm_torchrec.datasets.prepared.manifest import DataFile, Manifest
from dlrm_torchrec.datasets.prepared.order import Order, Visit
from dlrm_torchrec.datasets.prepared.remote import random_access
from dlrm_torchrec.datasets.stream import Ranks, check_start_step

ROW_GROUPS_AHEAD = 4
_FOOTERS = 16  # that are kept in memory, parsed; 2 MB each for 64 row groups of 40 columns


Rows = NDArray[np.int64]
# By place and number of the row groups that are read: numbers of rows within the row group, ascending, or None for all.
Selection = Mapping[tuple[str, int], Rows | None]


class RowGroup(NamedTuple):
    path: str
    number: int  # of the row group in its file
    rows: int
    chosen: Rows | None = None  # in ascending order, those that are read; None means all


class ParquetStream:
    """Batches of one split of a prepared folder, with every row once per epoch, and a seeded order for each epoch.

    ``lanes`` decides which rows each global batch has (see ``order``). It must not change when a run resumes. A new run
    is fastest with as many lanes as ranks, and the default is ``world_size``. With a ``selection``, the split is
    as if it had no other rows.
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
        selection: Selection | None = None,
    ) -> None:
        manifest = Manifest.load(folder)
        splits = manifest.splits
        if split not in splits:
            raise ValueError(f"split must be one that {folder} holds: got {split!r} of {sorted(splits)}; prepare it")
        self.spec = manifest.spec
        self._stored_spec = manifest.stored_spec
        self._expander = Expander(manifest, folder)
        self._footer = lru_cache(_FOOTERS)(_read_footer)
        with ThreadPoolExecutor(_FOOTERS, thread_name_prefix="open") as threads:  # opening a remote file takes long
            places = None if selection is None else {place for place, _ in selection}
            wanted = [file for file in splits[split].files if places is None or file.location(folder) in places]
            files = list(threads.map(partial(self._row_groups, folder, selection), wanted))
        self._groups = [group for groups in files for group in groups]
        self._order = Order(
            group_rows=np.array([group.rows for group in self._groups], dtype=np.int64),
            epochs=epochs,
            lanes=world_size if lanes is None else lanes,
            ranks=Ranks(global_batch_size, rank, world_size),
            seed=seed,
            shuffle=shuffle,
        )
        self.num_steps = epochs * self._order.steps_per_epoch
        self._id_type = np.int32 if all(feature.ids <= 1 << 31 for feature in self.spec.sparse) else np.int64

    def batches(self, start_step: int = 0) -> Generator[Batch, None, None]:
        """This rank's share of the global batches ``start_step`` .. ``num_steps - 1``.

        Threads make batches in advance, and decode the row groups for them. They end with the iterator, and their
        errors are raised here. The memory holds the row groups that a batch is cut from and as many more, at least
        ``ROW_GROUPS_AHEAD``, for any size of files. With a GPU, batches lie in pinned memory.
        """
        check_start_step(start_step, self.num_steps)
        return ahead(self._batches(start_step), BATCHES_AHEAD)

    def _batches(self, start_step: int) -> Generator[Batch, None, None]:
        visits = self._visits(start_step)
        blocks: dict[Visit, Future[Block]] = {}
        shared: WeakValueDictionary[tuple[int, int], Future[Block]] = WeakValueDictionary()  # by epoch and group
        used: set[Visit] = set()
        pin_memory = torch.cuda.is_available()
        threads = ThreadPoolExecutor(max_workers=min(ROW_GROUPS_AHEAD, _cores()), thread_name_prefix="decode")
        try:
            for share, pieces in self._order.steps(start_step):
                current = {piece.visit for piece in pieces}
                for visit in used - current:
                    del blocks[visit]
                used = current
                while not current <= blocks.keys() or len(blocks) < len(current) + max(len(current), ROW_GROUPS_AHEAD):
                    following = next(visits, None)
                    if following is None:
                        break
                    epoch, _, group = following
                    future = shared.get((epoch, group)) or threads.submit(self._decode, following)
                    blocks[following] = shared[epoch, group] = future
                yield to_batch(
                    self.spec,
                    [blocks[visit].result().slice(first, last) for visit, first, last in pieces],
                    share,
                    pin_memory=pin_memory,
                )
        finally:
            threads.shutdown(cancel_futures=True)

    def _visits(self, start_step: int) -> Iterator[Visit]:
        """The row groups in the order in which batches first need them."""
        before: set[Visit] = set()
        for _, pieces in self._order.steps(start_step):
            for piece in pieces:
                if piece.visit not in before:
                    yield piece.visit
            before = {piece.visit for piece in pieces}

    def _decode(self, visit: Visit) -> Block:
        path, number, _, chosen = self._groups[visit.group]
        footer = self._footer(path)
        with _named(path), g_pathmgr.open(path, "rb") as raw:
            columns = read_row_group(pq.ParquetFile(raw, metadata=footer), number, self._stored_spec, path)
        order = self._order.rows(visit)
        if chosen is not None:
            order = chosen if order is None else chosen[order]
        return self._expander.block(joined(columns, self._id_type, order))

    def _row_groups(self, folder: str, selection: Selection | None, file: DataFile) -> list[RowGroup]:
        place = file.location(folder)
        path = random_access(place)
        footer = self._footer(path)
        check_schema(footer.schema.to_arrow_schema(), self._stored_spec, path)
        if footer.num_rows != file.rows:
            raise ValueError(
                f"file {path} must have the {file.rows} rows of its manifest: got {footer.num_rows}; prepare it again"
            )
        groups = [RowGroup(path, number, footer.row_group(number).num_rows) for number in range(footer.num_row_groups)]
        if selection is None:
            return groups
        chosen = [(group, selection[place, group.number]) for group in groups if (place, group.number) in selection]
        return [group if rows is None else group._replace(rows=len(rows), chosen=rows) for group, rows in chosen]


def _cores() -> int:
    """The number of cores of this machine that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _named(path: str) -> Iterator[None]:
    """Let Arrow's errors about a damaged file name it."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the system's own errors name the file
        reason = " ".join(str(error).split())
        raise ValueError(
            f"file {path} must be whole Parquet: got '{reason}'; restore the file, or prepare the data again"
        ) from error


def _read_footer(path: str) -> pq.FileMetaData:
    with _named(path), g_pathmgr.open(path, "rb") as raw:
        return pq.ParquetFile(raw).metadata
