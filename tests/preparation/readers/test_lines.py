from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dlrm_torchrec.preparation.readers.lines import count_lines, read_lines
from dlrm_torchrec.preparation.readers.rows import Checks
from tests.preparation import criteo_files


def texts(path: Path, block_bytes: int = 1 << 20, max_line_bytes: int = 1 << 20) -> list[tuple[int, bytes]]:
    return [
        (int(lines.numbers[i]), lines.text(i))
        for lines in read_lines(str(path), block_bytes=block_bytes, max_line_bytes=max_line_bytes)
        for i in range(len(lines))
    ]


@pytest.mark.parametrize("block_bytes", [1, 2, 7, 1000])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_lines_equal_those_of_a_split(tmp_path: Path, block_bytes: int, pack: Callable[[bytes], bytes]) -> None:
    data = b"\xef\xbb\xbfa\tb\r\n\n\r\nlong " + b"x" * 300 + b"\n\x00\xff\n\r\r\nlast"
    (tmp_path / "f").write_bytes(pack(data))
    expected = [raw.removesuffix(b"\r") for raw in data[3:].split(b"\n")]
    assert texts(tmp_path / "f", block_bytes) == list(enumerate(expected, start=1))
    assert sum(lines for lines, _, _ in count_lines(str(tmp_path / "f"))) == 7


@pytest.mark.parametrize("data", [b"", b"\xef\xbb\xbf", b"\n"])
def test_files_without_text(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "f").write_bytes(data)
    assert all(text == b"" for _, text in texts(tmp_path / "f"))


@pytest.mark.parametrize("block_bytes", [3, 10, 1000])
@pytest.mark.parametrize("length", [9, 10, 11, 12, 13, 14, 15, 16, 40])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_only_lines_longer_than_the_limit_are_rejected(
    tmp_path: Path, block_bytes: int, length: int, mark: bytes, end: bytes
) -> None:
    (tmp_path / "f").write_bytes(mark + b"x" * length + end + b"next" + end)
    rejected: list[tuple[int, str, bytes]] = []
    numbers: list[int] = []
    for lines in read_lines(str(tmp_path / "f"), block_bytes=block_bytes, max_line_bytes=10):
        checks = Checks(len(lines))
        lines.check(checks, 10)
        rejected += lines.rejected(checks, 10)
        numbers += list(lines.numbers[checks.good])
    assert numbers == ([2] if length > 10 else [1, 2])
    assert rejected == ([(1, "longer than 10 bytes", b"x" * 10)] if length > 10 else [])


def test_truncated_gzip_yields_every_byte_before_the_break(tmp_path: Path) -> None:
    data = b"".join(b"%d\n" % i for i in range(5000))
    packed = gzip.compress(data)
    (tmp_path / "f").write_bytes(packed[: len(packed) // 2])
    blocks = list(read_lines(str(tmp_path / "f"), block_bytes=1000))
    assert blocks[-1].damage == "truncated gzip stream"
    assert not any(block.damage for block in blocks[:-1])
    got = texts(tmp_path / "f", 1000)
    whole = got[: -len(blocks[-1])] if len(blocks[-1]) else got
    assert len(whole) > 1000
    assert whole == [(i + 1, b"%d" % i) for i in range(len(whole))]


@pytest.mark.parametrize("block_bytes", [1, 3, 1000])
def test_gzip_cut_anywhere_yields_what_zlib_can_read(tmp_path: Path, block_bytes: int) -> None:
    packed = gzip.compress(b"again and again\n" * 60 + b"x" * 700 + b"\nend\n", mtime=0)
    for cut in range(2, len(packed)):
        (tmp_path / "f").write_bytes(packed[:cut])
        data, _ = criteo_files.gunzip(packed[:cut])
        assert b"\n".join(text for _, text in texts(tmp_path / "f", block_bytes)) == data.removesuffix(b"\n")
        assert list(read_lines(str(tmp_path / "f"), block_bytes=block_bytes))[-1].damage == "truncated gzip stream"


@pytest.mark.parametrize("block_bytes", [1, 7, 1000])
def test_gzip_members_may_be_padded_with_zeros(tmp_path: Path, block_bytes: int) -> None:
    (tmp_path / "f").write_bytes(gzip.compress(b"1\n") + bytes(20) + gzip.compress(b"2\n") + bytes(5))
    assert texts(tmp_path / "f", block_bytes) == [(1, b"1"), (2, b"2")]
    assert not any(lines.damage for lines in read_lines(str(tmp_path / "f"), block_bytes=block_bytes))


def test_a_gzip_of_many_members_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many there are and however small, the bytes given to zlib grow with the file, not with its square."""
    parts = [(b"line %d\n" % i) * (i % 3 * (i % 997 == 0) * 40_000 + i % 2) for i in range(20_000)]
    packed = b"".join(gzip.compress(part, 1, mtime=0) + b"\0" * (i % 5 == 0) for i, part in enumerate(parts))
    (tmp_path / "f").write_bytes(packed)
    given = 0

    class Counted:
        def __init__(self, member: Any) -> None:
            self.member = member

        def decompress(self, data: bytes, most: int) -> bytes:
            nonlocal given
            given += len(data)
            return self.member.decompress(data, most)

        def copy(self) -> Any:
            return self.member.copy()

        def __getattr__(self, name: str) -> Any:
            return getattr(self.member, name)

    new = zlib.decompressobj
    monkeypatch.setattr(zlib, "decompressobj", lambda **how: Counted(new(**how)))
    found = texts(tmp_path / "f", 1 << 22, 1 << 24)
    assert [text for _, text in found] == b"".join(parts).split(b"\n")[: len(found)]
    assert len(found) >= b"".join(parts).count(b"\n")
    assert given < 100 * len(packed)


def test_fragment_that_looks_whole_is_rejected(tmp_path: Path) -> None:
    member = zlib.compressobj(wbits=31)
    (tmp_path / "f").write_bytes(member.compress(b"1\n23") + member.flush(zlib.Z_SYNC_FLUSH))
    kept: list[int] = []
    rejected: list[tuple[int, str, bytes]] = []
    for lines in read_lines(str(tmp_path / "f")):
        checks = Checks(len(lines))
        lines.check(checks, 10)
        kept += [int(number) for number in lines.numbers[checks.good]]
        rejected += lines.rejected(checks, 10)
    assert kept == [1]
    assert rejected == [(2, "the file breaks off in this line", b"23")]


def test_damaged_gzip_says_so(tmp_path: Path) -> None:
    packed = bytearray(gzip.compress(b"1\n2\n3\n"))
    packed[-8] ^= 1  # the checksum
    (tmp_path / "f").write_bytes(packed)
    assert [text for _, text in texts(tmp_path / "f")] == [b"1", b"2", b"3"]
    assert "incorrect data check" in list(read_lines(str(tmp_path / "f")))[-1].damage
