"""One architecture's device code stays in a library, and every other byte where it was."""

from __future__ import annotations

import random
import struct

import pytest

from requirements.gpu_bundle.fatbin import fat_binaries, keep_architecture
from tests.gpu_bundle.libraries import ARCHITECTURES, elf, entry, fat_binary, library


def test_all_entries_are_found() -> None:
    made = library()
    content = bytearray(made.content)
    found = [[bytes(content[part.start : part.end]) for part in fat.entries] for fat in fat_binaries(content)]
    assert found == made.fat_binaries
    assert {part.architecture for fat in fat_binaries(content) for part in fat.entries} == set(ARCHITECTURES)


def test_one_architecture_stays_and_all_other_code_becomes_zeros() -> None:
    made = library()
    content = bytearray(made.content)
    kept_bytes = keep_architecture(content, 90)
    after = made.start + len(made.wanted)
    assert bytes(content) == made.content[: made.start] + made.wanted + made.content[after:]
    assert [[part.architecture for part in fat.entries] for fat in fat_binaries(content)] == [[90]] * len(
        made.fat_binaries
    )
    assert kept_bytes == sum(part.end - part.start for fat in fat_binaries(content) for part in fat.entries)
    again = bytearray(content)
    keep_architecture(again, 90)
    assert again == content


def test_a_library_without_device_code_stays_as_it_is() -> None:
    content = bytearray(elf(b"")[0])
    before = bytes(content)
    assert keep_architecture(content, 90) == 0
    assert content == before


def test_code_that_is_not_there_is_refused() -> None:
    code = fat_binary(entry(80) + entry(90)) + fat_binary(entry(100) + entry(80) + entry(90, kind=1))
    with pytest.raises(ValueError, match="library has code for: got sm_90; choose of sm_100, sm_80"):
        keep_architecture(bytearray(elf(code)[0]), 90)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (fat_binary(entry(90)) + b"12345678", "zeros after the last fat binary"),
        (b"12345678" + fat_binary(entry(90)), "zeros between fat binaries"),
        (fat_binary(entry(90), length=2**20), "a fat binary inside its section"),
        (fat_binary(entry(90)[:-8]) + bytes(8), "entries that fill a fat binary"),
        (fat_binary(b""), "entries that fill a fat binary"),
        (fat_binary(entry(90, kind=7)), "PTX or machine code"),
        (fat_binary(entry(90)).replace(struct.pack("<HH", 1, 16), struct.pack("<HH", 2, 16), 1), "of version 1"),
    ],
)
def test_another_layout_is_refused(code: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=f"must begin .*{reason}: got another layout; take a wheel of CUDA 13"):
        keep_architecture(bytearray(elf(code)[0]), 90)


def test_another_kind_of_file_is_refused() -> None:
    with pytest.raises(ValueError, match="byte 0 must begin the head of a 64-bit little-endian ELF file"):
        keep_architecture(bytearray(b"MZ" + random.randbytes(500)), 90)
