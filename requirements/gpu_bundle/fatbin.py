"""One GPU generation's device code stays in a library; that of all others becomes zeros, which compress to nothing.

nvcc puts the device code of each source file into one *fat binary* in the section .nv_fatbin: a header of 16 bytes
(magic, version, size of the header, size of what follows) and one entry for each architecture (kind, version, size of
its header, size of its code; the architecture stands at byte 28). CUDA's driver is given the address of the fat binary
and takes the entry that fits its device. So a fat binary may keep one entry at the place of the first, if its header
says so, and the library needs no linking: every other byte stays where it is.

NVIDIA does not document this layout, so whatever does not agree with it is refused.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from typing import NamedTuple

FAT_BINARY = struct.Struct("<IHHQ")  # magic, version, bytes of this header, bytes of all entries
ENTRY = struct.Struct("<HHIQ12xI")  # kind, version, bytes of this header, bytes of the code, architecture
MAGIC = struct.pack("<I", 0xBA55ED50)
MACHINE_CODE = 2  # the kind of an entry; 1 is PTX, which a driver compiles

Library = bytearray | mmap.mmap


class Entry(NamedTuple):
    """One architecture's code of a fat binary: where its header begins and its code ends, in the library."""

    architecture: int  # 90 is sm_90 and sm_90a
    machine_code: bool
    start: int
    end: int


class FatBinary(NamedTuple):
    start: int
    end: int
    entries: list[Entry]


def fat_binaries(library: Library) -> Iterator[FatBinary]:
    """All fat binaries of a shared library for 64-bit Linux, in order. ValueError for a layout that is not known."""
    for start, end in _sections(library, ".nv_fatbin"):
        place = start
        while (found := library.find(MAGIC, place, end)) >= 0:
            yield (fat := _fat_binary(library, found, end))
            _expect(not library[place:found].strip(b"\0"), place, "zeros between fat binaries")
            place = fat.end
        _expect(not library[place:end].strip(b"\0"), place, "zeros after the last fat binary")


def keep_architecture(library: Library, architecture: int) -> int:
    """Clear all device code but one architecture's machine code, in place; how many bytes of it are left.

    Raises ValueError if some fat binary has none for this architecture.
    """
    kept_bytes = 0
    for fat in list(fat_binaries(library)):
        kept = [entry for entry in fat.entries if entry.machine_code and entry.architecture == architecture]
        if not kept:
            others = ", ".join(sorted({f"sm_{entry.architecture}" for entry in fat.entries}))
            raise ValueError(
                f"the architecture must be one that the library has code for: got sm_{architecture}; choose of {others}"
            )
        code = b"".join(library[entry.start : entry.end] for entry in kept)
        first = fat.entries[0].start
        library[first : fat.end] = code + bytes(fat.end - first - len(code))
        magic, version, header_bytes, _ = FAT_BINARY.unpack_from(library, fat.start)
        FAT_BINARY.pack_into(library, fat.start, magic, version, header_bytes, len(code))
        kept_bytes += len(code)
    return kept_bytes


def _sections(library: Library, name: str) -> Iterator[tuple[int, int]]:
    """First byte and end of all sections of that name (ELF-64 specification, chapters "ELF Header" and "Sections")."""
    _expect(library[:6] == b"\x7fELF\x02\x01", 0, "the head of a 64-bit little-endian ELF file")
    (table,) = struct.unpack_from("<Q", library, 0x28)
    entry_bytes, num_sections, of_names = struct.unpack_from("<3H", library, 0x3A)
    sections = [struct.unpack_from("<I20xQQ", library, table + at * entry_bytes) for at in range(num_sections)]
    names = sections[of_names][1]
    for of_name, start, size in sections:
        if library[names + of_name : names + of_name + len(name) + 1] == name.encode() + b"\0":
            yield start, start + size


def _fat_binary(library: Library, start: int, section_end: int) -> FatBinary:
    _, version, header_bytes, size = FAT_BINARY.unpack_from(library, start)
    _expect((version, header_bytes) == (1, FAT_BINARY.size), start, "a fat binary of version 1")
    place, end = start + header_bytes, start + header_bytes + size
    _expect(end <= section_end, start, "a fat binary inside its section")
    entries = []
    while place < end:
        kind, _, header_bytes, size, architecture = ENTRY.unpack_from(library, place)
        _expect(kind in (1, MACHINE_CODE), place, "PTX or machine code")
        entries.append(Entry(architecture, kind == MACHINE_CODE, place, place + header_bytes + size))
        place = entries[-1].end
    _expect(place == end and len(entries) > 0, start, "entries that fill a fat binary")
    return FatBinary(start, end, entries)


def _expect(agrees: bool, place: int, what: str) -> None:  # noqa: FBT001
    if not agrees:
        raise ValueError(f"a library's byte {place} must begin {what}: got another layout; take a wheel of CUDA 13")
