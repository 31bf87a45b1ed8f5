"""Lines of text files, plain or gzip, as offsets into blocks of bytes; nothing is decoded and no line is copied."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from iopath.common.file_io import g_pathmgr

from dlrm_torchrec.datasets.rows import Checks, Ints, Mask, Rejected

BLOCK_BYTES = 8 << 20
MAX_LINE_BYTES = 1 << 20

_GZIP_MAGIC = b"\x1f\x8b"
_UTF8_BOM = b"\xef\xbb\xbf"
_NEWLINE, _RETURN = 0x0A, 0x0D
_TRIMMED_BYTES = len(_UTF8_BOM) + 1  # a mark and a carriage return do not count towards a line's length


@dataclass(frozen=True, kw_only=True)
class Lines:
    """N lines: line ``i`` is ``data[starts[i]:ends[i]]``, without its ``\\n`` or ``\\r\\n``."""

    data: npt.NDArray[np.uint8]
    starts: Ints
    ends: Ints
    numbers: Ints  # 1-based
    damage: str = ""  # why the file breaks off here; the line, if there is one, is a fragment

    def __len__(self) -> int:
        return len(self.starts)

    def select(self, keep: Mask | slice) -> Lines:
        """Some of the lines, in the same order."""
        return replace(self, starts=self.starts[keep], ends=self.ends[keep], numbers=self.numbers[keep])

    def text(self, index: int) -> bytes:
        """The bytes of one line."""
        return self.data[self.starts[index] : self.ends[index]].tobytes()

    def rejected(self, checks: Checks, max_line_bytes: int) -> tuple[Rejected, ...]:
        """The lines that failed a check, cut to ``max_line_bytes``."""
        return tuple(
            Rejected(int(self.numbers[i]), reason, self.text(i)[:max_line_bytes]) for i, reason in checks.bad()
        )

    def check(self, checks: Checks, max_line_bytes: int) -> None:
        """Reject fragments, lines that are too long and lines with a NUL byte."""
        checks.reject(np.full(len(self), bool(self.damage)), "the file breaks off in this line")
        checks.reject(self.ends - self.starts > max_line_bytes, f"longer than {max_line_bytes} bytes")
        nul = np.flatnonzero(self.data == 0)
        if len(nul):
            checks.reject(np.searchsorted(nul, self.ends) > np.searchsorted(nul, self.starts), "NUL byte")


class _DamageError(Exception):
    """A compressed file cannot be read further; all bytes before the break were yielded."""


def read_lines(path: str, block_bytes: int = BLOCK_BYTES, max_line_bytes: int = MAX_LINE_BYTES) -> Iterator[Lines]:
    """All lines of a file in blocks of about ``block_bytes``; a UTF-8 byte order mark is skipped.

    Of a longer line little more than ``max_line_bytes`` are kept, so that memory stays bounded. A gzip file
    that breaks off yields the lines before the break, then the fragment with ``damage`` set.
    """
    number, rest, skipping, damage = 1, b"", False, ""
    blocks = _blocks(path, block_bytes)
    while True:
        try:
            block = next(blocks)
        except StopIteration:
            break
        except _DamageError as error:
            damage = str(error)
            break
        if skipping:
            end = block.find(b"\n") + 1
            if not end:
                continue
            block, skipping = block[end:], False
        rest += block
        end = rest.rfind(b"\n") + 1
        if end:
            lines = _split(rest[:end], number)
            yield lines
            number, rest = number + len(lines), rest[end:]
        if len(rest) > max_line_bytes + _TRIMMED_BYTES:
            yield _split(rest[: max_line_bytes + _TRIMMED_BYTES + 1], number)
            number, rest, skipping = number + 1, b"", True
    if rest or damage:
        yield _split(rest, number, damage)


def count_lines(path: str) -> int:
    """Number of lines of a file, the last of which may lack its line end."""
    return sum(len(lines) for lines in read_lines(path))


def _split(data: bytes, first: int, damage: str = "") -> Lines:
    buffer = np.frombuffer(data, np.uint8)
    ends = np.flatnonzero(buffer == _NEWLINE)
    if data and not data.endswith(b"\n"):
        ends = np.append(ends, len(data))
    starts = np.concatenate([[0], ends[:-1] + 1])[: len(ends)]
    if first == 1 and data.startswith(_UTF8_BOM):
        starts[0] = len(_UTF8_BOM)
    with_return = (ends > starts) & (buffer[ends - 1] == _RETURN)
    return Lines(
        data=buffer,
        starts=starts,
        ends=ends - with_return,
        numbers=np.arange(first, first + len(ends)),
        damage=damage,
    )


def _blocks(path: str, block_bytes: int) -> Iterator[bytes]:
    with g_pathmgr.open(path, "rb") as file:
        head = file.read(len(_GZIP_MAGIC))
        chunks = _chunks(file, head, block_bytes)
        yield from _gunzip(chunks, block_bytes) if head == _GZIP_MAGIC else chunks


def _chunks(file: IO[bytes], head: bytes, block_bytes: int) -> Iterator[bytes]:
    yield head
    while chunk := file.read(block_bytes):
        yield chunk


def _gunzip(chunks: Iterator[bytes], block_bytes: int) -> Iterator[bytes]:
    """Decompressed blocks of one or several gzip members."""
    member, inside = zlib.decompressobj(wbits=31), False
    for chunk in chunks:
        while chunk := chunk if inside else chunk.lstrip(b"\0"):  # members may be followed by zeros
            before = member.copy()
            try:
                yield member.decompress(chunk, block_bytes)
            except zlib.error as error:
                yield _salvage(before, chunk)
                raise _DamageError(f"damaged gzip stream: {error}") from error
            inside = True
            chunk = member.unconsumed_tail
            if member.eof:
                chunk = member.unused_data
                member, inside = zlib.decompressobj(wbits=31), False
    if inside:
        yield member.flush()
        raise _DamageError("truncated gzip stream")


def _salvage(member: Any, chunk: bytes) -> bytes:
    """What can be decompressed of a chunk before its error."""
    out = bytearray()
    with suppress(zlib.error):
        for i in range(len(chunk)):
            out += member.decompress(chunk[i : i + 1])
    return bytes(out)
