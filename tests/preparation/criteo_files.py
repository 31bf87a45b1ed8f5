"""Small Criteo files and a slow, plain reading of them: one line, one field at a time."""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass, field

import numpy as np

MAX_LINE = 1 << 14


def line(rng: np.random.Generator, labelled: bool = True) -> bytes:
    """One well-formed line without its end."""
    label = [str(rng.integers(2))] if labelled else []
    dense = ["" if rng.random() < 0.2 else str(int(rng.pareto(0.5) * 5) - 3) for _ in range(13)]
    sparse = ["" if rng.random() < 0.2 else f"{int(rng.zipf(1.5)) * 2654435761 % 2**32:08x}" for _ in range(26)]
    return "\t".join([*label, *dense, *sparse]).encode()


def content(rng: np.random.Generator, rows: int, labelled: bool = True) -> bytes:
    return b"".join(line(rng, labelled) + b"\n" for _ in range(rows))


@dataclass
class Reading:
    good: list[tuple[int, int, list[float | None], list[int | None]]] = field(default_factory=list)
    bad: dict[int, bytes] = field(default_factory=dict)  # raw bytes by line number
    blanks: int = 0


def read(data: bytes, labelled: bool = True) -> Reading:
    """Which lines of a file, plain or gzip, are good, and what they hold."""
    fragment = False
    if data.startswith(b"\x1f\x8b"):
        data, fragment = gunzip(data)
    for mark, name in ((b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be")):
        if data.startswith(mark):
            data = data[2:].decode(name, "replace").encode()
    result = Reading()
    lines = data.removeprefix(b"\xef\xbb\xbf").split(b"\n") if data else []
    if lines and lines[-1] == b"":
        lines.pop()
        fragment = False
    for number, raw in enumerate(lines, start=1):
        text = raw.removesuffix(b"\r")
        if text == b"":
            result.blanks += 1
            continue
        row = parse(text, labelled)
        if row is None or (fragment and number == len(lines)):
            result.bad[number] = text[:MAX_LINE]
        else:
            result.good.append((number, *row))
    return result


def gunzip(data: bytes) -> tuple[bytes, bool]:
    """What can be decompressed, and whether the stream breaks off."""
    out, inside, member = b"", False, zlib.decompressobj(wbits=31)
    for i in range(len(data)):
        try:
            out += member.decompress(data[i : i + 1])
        except zlib.error:
            return out, True
        inside = True
        if member.eof:
            inside, member = False, zlib.decompressobj(wbits=31)
    return out, inside


def parse(text: bytes, labelled: bool) -> tuple[int, list[float | None], list[int | None]] | None:
    fields = text.split(b"\t")
    if len(text) > MAX_LINE or len(fields) != 39 + labelled:
        return None
    label = fields.pop(0) if labelled else b"0"
    if label not in (b"0", b"1"):
        return None
    dense: list[float | None] = []
    for value in fields[:13]:
        if value == b"":
            dense.append(None)
        elif re.fullmatch(rb"-?[0-9]{1,19}", value) and -(2**63) <= int(value) < 2**63:
            dense.append(float(int(value)))
        else:
            return None
    sparse: list[int | None] = []
    for value in fields[13:]:
        if value == b"":
            sparse.append(None)
        elif re.fullmatch(rb"[0-9a-fA-F]{8}", value):
            sparse.append(int(value, 16))
        else:
            return None
    return int(label), dense, sparse


def hashed(value: int | None, rows: int) -> int:
    """Id of the hash encoding in Python integers."""
    if value is None:
        return 0
    x = (value + 0x9E3779B97F4A7C15) % 2**64
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
    return 1 + (x ^ (x >> 31)) % (rows - 1)
