"""Ways in which Criteo files are found damaged; each takes a generator and a file and gives another file."""

from __future__ import annotations

import gzip
from collections.abc import Callable

import numpy as np

Mutation = Callable[[np.random.Generator, bytes], bytes]


def _position(rng: np.random.Generator, data: bytes) -> int:
    return int(rng.integers(len(data) + 1))


def _edit_line(rng: np.random.Generator, data: bytes, edit: Callable[[bytes], bytes]) -> bytes:
    lines = data.split(b"\n")
    at = int(rng.integers(max(len(lines) - 1, 1)))
    lines[at] = edit(lines[at])
    return b"\n".join(lines)


def _edit_field(rng: np.random.Generator, data: bytes, first: int, last: int, value: bytes) -> bytes:
    def edit(line: bytes) -> bytes:
        fields = line.split(b"\t")
        fields[min(int(rng.integers(first, last)), len(fields) - 1)] = value
        return b"\t".join(fields)

    return _edit_line(rng, data, edit)


def truncated_line(rng: np.random.Generator, data: bytes) -> bytes:
    return _edit_line(rng, data, lambda line: line[: _position(rng, line)])


def missing_column(rng: np.random.Generator, data: bytes) -> bytes:
    return _edit_line(rng, data, lambda line: line.replace(b"\t", b"", 1))


def extra_column(rng: np.random.Generator, data: bytes) -> bytes:
    return _edit_line(rng, data, lambda line: line + b"\t68fd1e64")


def non_hex(rng: np.random.Generator, data: bytes) -> bytes:
    values = [b"68fd1e6g", b"0x8fd1e6", b"68fd1e6", b"068fd1e64", b" 8fd1e64", b"-8fd1e64", b"68FD1E64", b"nan"]
    return _edit_field(rng, data, 14, 40, values[rng.integers(len(values))])


def odd_integer(rng: np.random.Generator, data: bytes) -> bytes:
    values = [
        b"9223372036854775807", b"9223372036854775808", b"-9223372036854775808", b"-9223372036854775809",
        b"1" * 200, b"99999999999999999999", b"1.5", b"+1", b"-", b"--1", b" 1", b"1_0",
        b"1e3", b"-0", b"007", b"0" * 19,
    ]  # fmt: skip
    return _edit_field(rng, data, 1, 14, values[rng.integers(len(values))])


def odd_label(rng: np.random.Generator, data: bytes) -> bytes:
    values = [b"", b"2", b"01", b"-1", b"1.0", b"click"]
    return _edit_field(rng, data, 0, 1, values[rng.integers(len(values))])


def nul_bytes(rng: np.random.Generator, data: bytes) -> bytes:
    at = _position(rng, data)
    return data[:at] + bytes(int(rng.integers(1, 5))) + data[at:]


def crlf(_: np.random.Generator, data: bytes) -> bytes:
    return data.replace(b"\n", b"\r\n")


def one_carriage_return(rng: np.random.Generator, data: bytes) -> bytes:
    return _edit_line(rng, data, lambda line: line + b"\r" * int(rng.integers(1, 3)))


def empty(_: np.random.Generator, __: bytes) -> bytes:
    return b""


def utf16(rng: np.random.Generator, data: bytes) -> bytes:
    return data.decode("latin-1").encode("utf-16" if rng.random() < 0.5 else "utf-16-le")


def utf8_mark(_: np.random.Generator, data: bytes) -> bytes:
    return b"\xef\xbb\xbf" + data


def latin1(rng: np.random.Generator, data: bytes) -> bytes:
    return _edit_field(rng, data, 0, 40, "café".encode("latin-1"))


def no_final_newline(_: np.random.Generator, data: bytes) -> bytes:
    return data.removesuffix(b"\n")


def long_line(rng: np.random.Generator, data: bytes) -> bytes:
    junk = b"x" * int(rng.integers(1, 50_000))
    return _edit_line(rng, data, lambda line: line + junk)


def blank_lines(rng: np.random.Generator, data: bytes) -> bytes:
    return _edit_line(rng, data, lambda line: line + b"\n" * int(rng.integers(1, 4))) + b"\n\r\n"


def noise(rng: np.random.Generator, data: bytes) -> bytes:
    damaged = bytearray(data)
    for _ in range(int(rng.integers(1, 8))):
        if damaged:
            damaged[rng.integers(len(damaged))] = rng.integers(256)
    return bytes(damaged)


def lost_range(rng: np.random.Generator, data: bytes) -> bytes:
    first, last = sorted((_position(rng, data), _position(rng, data)))
    return data[:first] + data[last:]


def spaces_for_tabs(rng: np.random.Generator, data: bytes) -> bytes:
    return _edit_line(rng, data, lambda line: line.replace(b"\t", b" "))


def other_newlines(rng: np.random.Generator, data: bytes) -> bytes:
    return _edit_line(rng, data, lambda line: line + b"\x0b\x0c\xc2\x85" + b"0")


TEXT: tuple[Mutation, ...] = (
    truncated_line, missing_column, extra_column, non_hex, odd_integer, odd_label, nul_bytes, crlf, one_carriage_return,
    empty, utf16, utf8_mark, latin1, no_final_newline, long_line, blank_lines, noise, lost_range, spaces_for_tabs,
    other_newlines,
)  # fmt: skip


def whole_gzip(_: np.random.Generator, data: bytes) -> bytes:
    return gzip.compress(data, mtime=0)


def two_gzip_members(rng: np.random.Generator, data: bytes) -> bytes:
    at = _position(rng, data)
    return gzip.compress(data[:at], mtime=0) + gzip.compress(data[at:], mtime=0)


def half_gzip(rng: np.random.Generator, data: bytes) -> bytes:
    packed = gzip.compress(data, mtime=0)
    return packed[: 2 + _position(rng, packed[2:])]


def damaged_gzip(rng: np.random.Generator, data: bytes) -> bytes:
    packed = bytearray(gzip.compress(data, mtime=0))
    packed[rng.integers(10, len(packed))] ^= 1 << int(rng.integers(8))
    return bytes(packed)


GZIP: tuple[Mutation, ...] = (whole_gzip, two_gzip_members, half_gzip, damaged_gzip)


def mutate(rng: np.random.Generator, data: bytes) -> bytes:
    """One to three damages to the text, then in two of five files one to its compression."""
    for _ in range(int(rng.integers(1, 4))):
        data = TEXT[rng.integers(len(TEXT))](rng, data)
    return GZIP[rng.integers(len(GZIP))](rng, data) if rng.random() < 0.4 else data
