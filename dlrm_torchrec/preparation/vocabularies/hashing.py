"""Stable 64-bit hashes: the same on every platform, in every process, and for pieces of any size."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from numba import int64, uint8

from dlrm_torchrec.compiled import compiled, read_only
from dlrm_torchrec.datasets.random.counter import Words, word, words
from dlrm_torchrec.preparation.readers.rows import int_buffers, text_buffers
from dlrm_torchrec.raw_values import kinds

_FNV_OFFSET = np.uint64(0xCBF29CE484222325)
_FNV_PRIME = np.uint64(0x100000001B3)
_FIRST = np.uint64(0)  # the number of a key's first word


def hash_ints(values: npt.NDArray[Any]) -> Words:
    """uint64 hash of each integer, a bijection of 64 bits: the first output of SplitMix64 with that seed."""
    return words(values, 0)


def hash_text(values: pa.StringArray) -> Words:
    """uint64 hash of each string: FNV-1a over its UTF-8 bytes, then ``hash_ints``; a null hashes as ""."""
    distinct = pc.dictionary_encode(values.cast(pa.large_string()).fill_null(""))
    offsets, data = text_buffers(distinct.dictionary)
    lengths = np.diff(offsets)
    state = np.full(len(lengths), _FNV_OFFSET)
    for position in range(lengths.max(initial=0)):
        longer = np.flatnonzero(lengths > position)
        state[longer] = (state[longer] ^ data[offsets[longer] + position]) * _FNV_PRIME
    hashes: Words = hash_ints(state)[distinct.indices.to_numpy()]
    return hashes


def hash_categories(values: Any, rows: int) -> npt.NDArray[np.int64]:
    """Ids of N canonical categories: 0 for null, else the hash folded into [1, ``rows``).

    A text that is a whole number hashes as that number.
    """
    if not pa.types.is_integer(values.type):
        coded = values.dictionary_encode()
        numbers, texts = kinds(coded.dictionary)
        hashes = np.where(
            numbers.is_valid().to_numpy(zero_copy_only=False),
            hash_ints(numbers.fill_null(0).to_numpy()),
            hash_text(texts),
        )
        places: npt.NDArray[np.int32] = coded.indices.fill_null(-1).to_numpy()
        return np.append(fold(hashes, rows), 0)[places]
    ids = np.empty(len(values), np.int64)
    hash_ids(*int_buffers(values), ids, rows=rows, if_missing=0)
    return ids


def fold(hashes: Words, rows: int) -> npt.NDArray[np.int64]:
    """Ids in [1, rows); id 0 is reserved for a missing value."""
    return (hashes % np.uint64(rows - 1)).astype(np.int64) + 1


@compiled(read_only(int64), read_only(uint8), int64, int64[::1], int64, int64)
def hash_ids(values: Any, valid: Any, offset: int, ids: Any, *, rows: int, if_missing: int) -> None:
    """Write ``fold(hash_ints(values), rows)`` to ``ids`` (N,), or ``if_missing`` where a bit of ``valid`` is 0.

    The bit of value i is bit ``offset`` + i.
    """
    for i in range(len(values)):
        if valid[(offset + i) >> 3] >> ((offset + i) & 7) & 1:
            ids[i] = np.int64(word(np.uint64(values[i]), _FIRST) % np.uint64(rows - 1)) + 1
        else:
            ids[i] = if_missing
