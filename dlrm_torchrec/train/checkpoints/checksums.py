"""Checksums of a checkpoint's files: made while they are written, compared on all threads before they are used.

A file has one CRC-32 for each 64 MiB. A CRC-32 finds every change of up to 32 neighbouring bits, so every flipped bit.
"""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import IO, Any

from iopath.common.file_io import g_pathmgr

from dlrm_torchrec.train.checkpoints.reports import Report, Say

BLOCK_BYTES = 1 << 26
_READ_BYTES = 1 << 22  # at a time and thread, so that verifying takes little memory


@dataclass
class FileSum:
    """The length of a file and the CRC-32 of each of its blocks of ``BLOCK_BYTES``, of which the last may be short."""

    num_bytes: int = 0
    crc32: list[int] = field(default_factory=list)

    def add(self, content: memoryview) -> None:
        """Count ``content``, the next bytes of the file."""
        while content:
            used = self.num_bytes % BLOCK_BYTES
            if used == 0:
                self.crc32.append(0)
            piece = content[: BLOCK_BYTES - used]
            self.crc32[-1] = zlib.crc32(piece, self.crc32[-1])
            self.num_bytes += len(piece)
            content = content[len(piece) :]


class SummedStream(io.RawIOBase):
    """A stream for writing that sums what passes, on a thread of its own beside the disk."""

    def __init__(self, stream: IO[bytes]) -> None:
        super().__init__()
        self.sum = FileSum()
        self._stream = stream
        self._pool = ThreadPoolExecutor(1)

    def write(self, content: Any) -> int:
        view = memoryview(content).cast("B")
        summed = self._pool.submit(self.sum.add, view)
        self._stream.write(view)
        summed.result()
        return len(view)

    def sync(self) -> None:
        """Wait until the disk has everything, where the store is a disk."""
        self._pool.shutdown()
        self._stream.flush()
        try:
            number = self._stream.fileno()
        except (AttributeError, io.UnsupportedOperation):  # a store that has the file once it is closed
            return
        os.fsync(number)


def sync_folder(path: str) -> None:
    """Wait until the disk has the names of the files in a local folder; stores have no folders."""
    if "://" not in path:
        number = os.open(path, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def is_plain_name(name: str) -> bool:
    """Whether a file of that name lies in the folder itself, not above or below it."""
    return name not in ("", ".", "..") and not set(name) & set("/\\\0")


def length_fault(path: str, name: str, num_bytes: int) -> str:
    """What is wrong with the length of file ``name`` in folder ``path``; empty when nothing is."""
    if not is_plain_name(name):
        return f"the file {name!r} lies elsewhere"
    try:
        with g_pathmgr.open(f"{path}/{name}", "rb") as stream:
            found = stream.seek(0, io.SEEK_END)
    except OSError as error:
        return f"{name} cannot be read: {error.strerror}"
    return "" if found == num_bytes else f"{name} has {found:,} bytes, not {num_bytes:,}"


@dataclass(frozen=True)
class Share:
    """The part of all blocks that one rank verifies: the one of ``rank`` among ``size`` parts."""

    rank: int = 0
    size: int = 1
    threads: int = 8


def content_fault(path: str, sums: Mapping[str, FileSum], share: Share, say: Say) -> str:
    """The first block in this rank's share of the files in folder ``path`` that differs; empty when none does."""
    blocks = [(name, index) for name, each in sorted(sums.items()) for index in range(len(each.crc32))]
    first, last = (len(blocks) * each // share.size for each in (share.rank, share.rank + 1))
    report = Report(say, f"verifying {path}", sum(each.num_bytes for each in sums.values()) // share.size)

    def fault(block: tuple[str, int]) -> str:
        name, index = block
        start = index * BLOCK_BYTES
        end = min(start + BLOCK_BYTES, sums[name].num_bytes)
        try:
            found = _crc32(f"{path}/{name}", start, end, report)
        except OSError as error:
            return f"{name} cannot be read: {error.strerror}"
        same = found == sums[name].crc32[index]
        return "" if same else f"{name} differs from its checksum between bytes {start:,} and {end:,}"

    with ThreadPoolExecutor(share.threads) as pool:
        return _first(pool.map(fault, blocks[first:last]))


def _first(faults: Iterable[str]) -> str:
    return next(filter(None, faults), "")


def _crc32(path: str, start: int, end: int, report: Report) -> int:
    buffer = memoryview(bytearray(min(_READ_BYTES, end - start)))
    crc = 0
    with g_pathmgr.open(path, "rb") as stream:
        stream.seek(start)
        while start < end:
            count = stream.readinto(buffer[: end - start])
            if not count:
                break
            crc = zlib.crc32(buffer[:count], crc)
            start += count
            report.add(count)
    return crc
