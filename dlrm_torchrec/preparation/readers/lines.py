"""Reads lines of text files as offsets into blocks of bytes, without decoding or copying lines."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from dlrm_torchrec.preparation.readers.rows import Checks, Ints, Mask, Rejected
from dlrm_torchrec.preparation.readers.spans import Span
from dlrm_torchrec.preparation.readers.streams import DamageError, text_blocks

BLOCK_BYTES = 4 << 20
MAX_LINE_BYTES = 1 << 20
_SEARCHED_BYTES = 1 << 16  # at a time, so that the data stays in the processor's cache

_UTF8_BOM = b"\xef\xbb\xbf"
_NEWLINE, _RETURN, _QUOTE = 0x0A, 0x0D, 0x22
_TRIMMED_BYTES = len(_UTF8_BOM) + 1  # the mark and a carriage return do not count as part of a line


@dataclass(frozen=True, kw_only=True)
class Lines:
    """N lines: line ``i`` is ``data[starts[i]:ends[i]]``, without its ``\\n`` or ``\\r\\n``."""

    data: npt.NDArray[np.uint8]
    starts: Ints
    ends: Ints
    numbers: Ints  # 1-based
    raw_bytes: int = 0  # of the file, read since the previous lines
    damage: str = ""  # why the file ends too early here; its last line is then a fragment

    def __len__(self) -> int:
        return len(self.starts)

    def select(self, keep: Mask | slice) -> Lines:
        """Some of the lines, in the same order."""
        return replace(self, starts=self.starts[keep], ends=self.ends[keep], numbers=self.numbers[keep])

    def copy(self) -> Lines:
        """The same lines in a new array of bytes, with nothing between them."""
        ends = np.cumsum(self.ends - self.starts)
        data = np.frombuffer(b"".join(self.text(i) for i in range(len(self))), np.uint8)
        return replace(self, data=data, starts=np.concatenate([[0], ends[:-1]])[: len(ends)], ends=ends)

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
        checks.reject(
            bool(self.damage) & (np.arange(1, 1 + len(self)) == len(self)), "the file breaks off in this line"
        )
        checks.reject(self.ends - self.starts > max_line_bytes, f"longer than {max_line_bytes} bytes")
        nul = np.flatnonzero(self.data == 0)
        if len(nul):
            checks.reject(np.searchsorted(nul, self.ends) > np.searchsorted(nul, self.starts), "NUL byte")


def read_lines(
    path: str,
    span: Span | None = None,
    *,
    block_bytes: int = BLOCK_BYTES,
    max_line_bytes: int = MAX_LINE_BYTES,
    quoted: bool = False,
) -> Iterator[Lines]:
    """All lines of a file, or of a span of it, in blocks of about ``block_bytes``, without a UTF-8 byte order mark.

    The next block overwrites the bytes of a block. Little more than ``max_line_bytes`` of a longer line are kept, so
    that memory stays bounded. With ``quoted``, a block ends where it has an even number of quotes, since a line end
    between quotes belongs to a field; but if ``max_line_bytes`` hold no such place, it ends at any line end. A damaged
    file yields the lines before the damage, and then the fragment with ``damage`` set.
    """
    longest = max_line_bytes + _TRIMMED_BYTES
    buffer = np.empty(longest + block_bytes, np.uint8)
    number, held, read, skipping, damage = span.first if span else 1, 0, 0, False, ""
    blocks = text_blocks(path, block_bytes, **_part(span))
    while True:
        try:
            block, file_bytes = next(blocks)
        except StopIteration:
            break
        except DamageError as error:
            damage = str(error)
            break
        read += file_bytes
        if skipping:
            end = block.find(b"\n") + 1
            if not end:
                continue
            block, skipping = block[end:], False
        if held + len(block) > len(buffer):
            buffer = np.concatenate([buffer[:held], np.empty(block_bytes + len(block), np.uint8)])
        buffer[held : held + len(block)] = np.frombuffer(block, np.uint8)
        held += len(block)
        ends = _newlines(buffer[:held])
        if quoted:
            outside = _outside_quotes(buffer[:held], ends)
            if held - (outside[-1] if len(outside) else 0) <= longest:  # else a quote has no other one
                ends = outside
        if len(ends):
            yield _split(buffer[:held], ends, first=number, read=read)
            end = int(ends[-1]) + 1
            buffer[: held - end] = buffer[end:held].copy()
            number, held, read = number + len(ends), held - end, 0
        if held > longest:
            yield _split(buffer[:held], np.array([longest + 1]), first=number, read=read)
            number, held, read, skipping = number + 1, 0, 0, True
    if held or damage:
        ends = _newlines(buffer[:held])
        if held and buffer[held - 1] != _NEWLINE:
            ends = np.append(ends, held)
        yield _split(buffer[:held], ends, first=number, read=read, damage=damage)


def count_lines(path: str, span: Span | None = None, *, quoted: bool = True) -> Iterator[tuple[int, int, int]]:
    """The lines and quotes of a file or of a span of it, in parts to be summed, each with its bytes in the file.

    The last line may lack its line end. The bytes are those of the file, which may be compressed. Without ``quoted``,
    quotes are not counted.
    """
    last = _NEWLINE
    with suppress(DamageError):
        for block, file_bytes in text_blocks(path, _SEARCHED_BYTES, **_part(span)):
            data = np.frombuffer(block, np.uint8)
            last = data[-1] if len(data) else last
            yield int(np.count_nonzero(data == _NEWLINE)), block.count(b'"') if quoted else 0, file_bytes
    if last != _NEWLINE:
        yield 1, 0, 0


def _part(span: Span | None) -> dict[str, int]:
    return {"start": span.start, "stop": span.stop} if span else {}


def _newlines(data: npt.NDArray[np.uint8]) -> Ints:
    """Positions of all line ends."""
    starts = range(0, len(data), _SEARCHED_BYTES)
    pieces = [np.flatnonzero(data[start : start + _SEARCHED_BYTES] == _NEWLINE) + start for start in starts]
    return np.concatenate(pieces) if pieces else np.empty(0, np.int64)


def _outside_quotes(data: npt.NDArray[np.uint8], ends: Ints) -> Ints:
    """The line ends up to the last one that has an even number of quotes before it."""
    quotes = np.flatnonzero(data == _QUOTE)
    even = np.flatnonzero(np.searchsorted(quotes, ends) % 2 == 0)
    return ends[: int(even[-1]) + 1] if len(even) else ends[:0]


def _split(data: npt.NDArray[np.uint8], ends: Ints, *, first: int, read: int, damage: str = "") -> Lines:
    starts = np.concatenate([[0], ends[:-1] + 1])[: len(ends)]
    if first == 1 and data[: len(_UTF8_BOM)].tobytes() == _UTF8_BOM:
        starts[0] = len(_UTF8_BOM)
    with_return = (ends > starts) & (data[ends - 1] == _RETURN)
    return Lines(
        data=data,
        starts=starts,
        ends=ends - with_return,
        numbers=np.arange(first, first + len(ends)),
        raw_bytes=read,
        damage=damage,
    )
