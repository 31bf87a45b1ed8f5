"""The bytes of text files, decompressed and in UTF-8; the first bytes of a file tell what it is, never its name."""

from __future__ import annotations

import bz2
import codecs
import lzma
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import IO, Any

import pyarrow as pa
from iopath.common.file_io import g_pathmgr

_READ_BYTES = 1 << 16  # at a time; what is read together is lost if the stream breaks in it
_FIRST_BYTES = 1024  # of a gzip member at once, then twice as many: what follows its end is copied each time
PARQUET_MAGIC = b"PAR1"
_GZIP, _ZIP = b"\x1f\x8b", b"PK\x03\x04"
_UTF16 = {codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}


class DamageError(Exception):
    """A compressed file cannot be read further; all bytes before the damage were yielded."""


def is_divisible(head: bytes) -> bool:
    """Whether a file that begins with ``head`` is text whose lines can be read from any place."""
    return not head.startswith((*_OPENERS, _GZIP, _ZIP, *_UTF16))


def first_bytes(path: str, count: int = 8) -> bytes:
    """The first bytes of a file as it is stored."""
    with g_pathmgr.open(path, "rb") as file:
        return bytes(file.read(count))


def text_blocks(path: str, block_bytes: int, *, start: int = 0, stop: int | None = None) -> Iterator[tuple[bytes, int]]:
    """Blocks of text, each with the number of bytes of the file that were read for it.

    A file that is not divisible is read as a whole. Raises DamageError after the blocks before the damage.
    """
    with g_pathmgr.open(path, "rb") as file:
        head = file.read(8)
        file.seek(start if is_divisible(head) else 0)
        if is_divisible(head):
            for chunk in _chunks(file, block_bytes, None if stop is None else stop - start):
                yield chunk, len(chunk)
            return
        blocks = _gunzip(_chunks(file, block_bytes), block_bytes) if head.startswith(_GZIP) else None
        yield from _recoded(blocks or _unpacked(path, file, head, block_bytes))


def _unpacked(path: str, file: IO[bytes], head: bytes, block_bytes: int) -> Iterator[tuple[bytes, int]]:
    """Decompressed blocks of a file that is not gzip."""
    if head.startswith(_ZIP):
        stream: Any = _only_member(path, file)
    else:
        stream = next((opener(file) for magic, opener in _OPENERS.items() if head.startswith(magic)), file)
    before, read = 0, getattr(stream, "read1", stream.read)
    try:
        while block := bytes(read(min(block_bytes, _READ_BYTES))):
            after = file.tell()
            yield block, max(0, after - before)
            before = max(before, after)
    except (EOFError, OSError, ValueError, lzma.LZMAError, zlib.error, zipfile.BadZipFile, pa.ArrowException) as error:
        raise DamageError(f"damaged compressed stream: {error}") from error


def _only_member(path: str, file: IO[bytes]) -> IO[bytes]:
    try:
        archive = zipfile.ZipFile(file)
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path} must be a whole zip file: got {error}; download it again") from error
    members = [each for each in archive.infolist() if not each.is_dir()]
    if len(members) != 1:
        raise ValueError(
            f"zip file {path} must hold one file: got {[each.filename for each in members][:5]}; unpack it"
        )
    return archive.open(members[0])


def _recoded(blocks: Iterator[tuple[bytes, int]]) -> Iterator[tuple[bytes, int]]:
    """The blocks in UTF-8, if a byte order mark says that they are UTF-16; otherwise as they are."""
    decoder, first, damage = None, True, None
    try:
        for block, file_bytes in blocks:
            if first and len(block) >= len(codecs.BOM_UTF16):
                mark, first = block[: len(codecs.BOM_UTF16)], False
                if mark in _UTF16:
                    decoder, block = codecs.getincrementaldecoder(_UTF16[mark])("replace"), block[len(mark) :]
            yield (decoder.decode(block).encode() if decoder else block), file_bytes
    except DamageError as error:
        damage = error
    if decoder:
        yield decoder.decode(b"", final=True).encode(), 0
    if damage:
        raise damage


def _chunks(file: IO[bytes], block_bytes: int, left: int | None = None) -> Iterator[bytes]:
    """The next ``left`` bytes of a file, or all of them."""
    while chunk := file.read(block_bytes if left is None else min(block_bytes, left)):
        left = None if left is None else left - len(chunk)
        yield chunk


def _gunzip(chunks: Iterator[bytes], block_bytes: int) -> Iterator[tuple[bytes, int]]:
    """Decompressed blocks of one or several gzip members."""
    member, inside, size = zlib.decompressobj(wbits=31), False, _FIRST_BYTES
    for chunk in chunks:
        start, file_bytes = 0, len(chunk)
        while start < len(chunk):
            piece = chunk[start : start + size]
            if not inside:  # zeros may follow a member
                start += len(piece) - len(piece.lstrip(b"\0"))
                piece = chunk[start : start + size]
                if not piece.strip(b"\0"):
                    continue
            before = member.copy()
            try:
                yield member.decompress(piece, block_bytes), file_bytes
            except zlib.error as error:
                yield _salvage(before, piece), file_bytes
                raise DamageError(f"damaged gzip stream: {error}") from error
            inside, file_bytes = True, 0
            start += len(piece) - len(member.unused_data if member.eof else member.unconsumed_tail)
            size = min(2 * size, block_bytes)
            if member.eof:
                member, inside, size = zlib.decompressobj(wbits=31), False, _FIRST_BYTES
    if inside:
        yield member.flush(), 0
        raise DamageError("truncated gzip stream")


def _salvage(member: Any, chunk: bytes) -> bytes:
    """The part of a chunk that can be decompressed before its error."""
    out = bytearray()
    with suppress(zlib.error):
        for i in range(len(chunk)):
            out += member.decompress(chunk[i : i + 1])
    return bytes(out)


_OPENERS: dict[bytes, Callable[[IO[bytes]], Any]] = {
    b"\x28\xb5\x2f\xfd": lambda file: pa.CompressedInputStream(pa.PythonFile(file, "r"), "zstd"),
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\x00": lzma.LZMAFile,
}
