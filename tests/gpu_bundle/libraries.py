"""Made-up shared libraries with device code: an ELF file whose section .nv_fatbin holds fat binaries."""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass, field

ARCHITECTURES = (80, 90, 100)


@dataclass
class MadeUp:
    """A library's bytes, the place of its device code there, and that code as it should be with sm_90 alone."""

    content: bytes = b""
    start: int = 0
    fat_binaries: list[list[bytes]] = field(default_factory=list)
    wanted: bytes = b""


def entry(architecture: int, *, kind: int = 2, version: int = 257) -> bytes:
    header_bytes = random.choice([64, 112])
    code = random.randbytes(8 * random.randrange(1, 500))
    head = struct.pack("<HHIQIIHHI", kind, version, header_bytes, len(code), 0, 0, 8, 1, architecture)
    return head + random.randbytes(header_bytes - len(head)) + code


def fat_binary(entries: bytes, *, length: int | None = None) -> bytes:
    return struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(entries) if length is None else length) + entries


def elf(device_code: bytes) -> tuple[bytes, int]:
    """A library with a section of random bytes on either side of its device code, and where that code begins."""
    names = b"\0.text\0.nv_fatbin\0.data\0.shstrtab\0"
    parts = {"text": random.randbytes(800), "nv_fatbin": device_code, "data": random.randbytes(80), "shstrtab": names}
    body, table = b"", bytes(64)
    for name, part in parts.items():
        table += struct.pack("<IIQQQQ", names.index(f".{name}".encode()), 1, 2, 0, 64 + len(body), len(part)) + bytes(
            24
        )
        body += part
    head = struct.pack("<6s10xHHIQQQIHHHHHH", b"\x7fELF\x02\x01", 3, 62, 1, 0, 0, 64 + len(body), 0, 64, 0, 0, 64, 5, 4)
    return head + body + table, 64 + len(parts["text"])


def library() -> MadeUp:
    """Some fat binaries, each with an entry for every architecture in any order, and zeros between them."""
    made, code = MadeUp(), b""
    for _ in range(random.randrange(2, 9)):
        entries = {architecture: entry(architecture) for architecture in random.sample(ARCHITECTURES, 3)}
        gap = bytes(8 * random.randrange(3))
        whole, kept = fat_binary(b"".join(entries.values())), fat_binary(entries[90])
        code += whole + gap
        made.wanted += kept + bytes(len(whole) - len(kept)) + gap
        made.fat_binaries.append(list(entries.values()))
    made.content, made.start = elf(code)
    return made
