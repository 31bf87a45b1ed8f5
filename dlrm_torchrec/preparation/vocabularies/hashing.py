"""Stable 64-bit hashes: the same on every platform, in every process, for any chunking."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from numba import int64, uint8

from dlrm_torchrec.datasets.compiled import compiled, read_only

Hashes = npt.NDArray[np.uint64]

_FNV_OFFSET = np.uint64(0xCBF29CE484222325)
_FNV_PRIME = np.uint64(0x100000001B3)


def hash_ints(values: npt.NDArray[Any]) -> Hashes:
    """uint64 hash of each integer: the finaliser of SplitMix64 (Steele et al. 2014), a bijection of 64 bits."""
    x = values.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def hash_text(values: pa.StringArray) -> Hashes:
    """uint64 hash of each string: FNV-1a over its UTF-8 bytes, then ``hash_ints``; a null hashes as ""."""
    distinct = pc.dictionary_encode(values.cast(pa.large_string()).fill_null(""))
    words = distinct.dictionary
    _, offsets_buffer, data_buffer = words.buffers()
    offsets = np.frombuffer(offsets_buffer, np.int64)[words.offset : words.offset + len(words) + 1]
    data = np.frombuffer(data_buffer or b"", np.uint8)
    lengths = np.diff(offsets)
    state = np.full(len(words), _FNV_OFFSET)
    for position in range(lengths.max(initial=0)):
        longer = np.flatnonzero(lengths > position)
        state[longer] = (state[longer] ^ data[offsets[longer] + position]) * _FNV_PRIME
    hashes: Hashes = hash_ints(state)[distinct.indices.to_numpy()]
    return hashes


def fold(hashes: Hashes, rows: int) -> npt.NDArray[np.int64]:
    """Ids in [1, rows): 0 is left for 'missing'."""
    return (hashes % np.uint64(rows - 1)).astype(np.int64) + 1


@compiled(read_only(int64), read_only(uint8), int64, int64[::1], int64, int64)
def hash_ids(values: Any, valid: Any, offset: int, ids: Any, *, rows: int, if_missing: int) -> None:
    """Write to ``ids`` (N,) what ``fold(hash_ints(values), rows)`` is where bit ``offset`` + i of ``valid`` is set."""
    for i in range(len(values)):
        if valid[(offset + i) >> 3] >> ((offset + i) & 7) & 1:
            x = np.uint64(values[i]) + np.uint64(0x9E3779B97F4A7C15)
            x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            ids[i] = np.int64((x ^ (x >> np.uint64(31))) % np.uint64(rows - 1)) + 1
        else:
            ids[i] = if_missing
