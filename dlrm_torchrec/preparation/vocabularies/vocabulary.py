"""Vocabularies turn categories of the training rows into ids by frequency; processes share their files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from iopath.common.file_io import g_pathmgr
from numba import int32, int64, uint8

from dlrm_torchrec.compiled import compiled, read_only
from dlrm_torchrec.datasets.prepared.files import is_local
from dlrm_torchrec.preparation.readers.rows import int_buffers, text_buffers
from dlrm_torchrec.preparation.vocabularies.int_tables import find_ids
from dlrm_torchrec.raw_values import kinds

MISSING, UNSEEN, FIRST = 0, 1, 2

Ids = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Vocabulary:
    """Ids of canonical categories: 0 missing, 1 unseen, and from 2 the known ones by falling count, then by value.

    A vocabulary that continues an earlier one keeps the ids of that one instead. ``table`` looks them up: keys and ids
    of a hash table of whole numbers, where id 0 marks a free slot; then texts in ascending order: offsets (N + 1),
    UTF-8 bytes, and ids (N,), 0 for a text that has none.
    """

    rows: int
    digest: str
    table: tuple[npt.NDArray[Any], ...]

    @classmethod
    def load(cls, rows: int, digest: str, paths: Sequence[str]) -> Vocabulary:
        """The vocabulary with the table in these ``.npy`` files; local files are mapped into memory."""
        return cls(rows, digest, tuple(_load(path) for path in paths))

    def encode(self, values: Any) -> Ids:
        """Ids (N,) of N canonical categories, which are int64 or text."""
        keys, key_ids, offsets, texts, text_ids = self.table
        if pa.types.is_integer(values.type):
            value_ids = np.empty(len(values), np.int32)
            find_ids(*int_buffers(values), value_ids, keys=keys, ids=key_ids, if_missing=MISSING, if_absent=UNSEEN)
            return value_ids
        coded = values.dictionary_encode()
        numbers, words = kinds(coded.dictionary)
        found = _find_text(
            *text_buffers(words.fill_null("").cast(pa.large_string())), offsets=offsets, values=texts, ids=text_ids
        )
        is_number = numbers.is_valid().to_numpy(zero_copy_only=False)
        found[is_number] = self.encode(numbers)[is_number]
        places: Ids = coded.indices.fill_null(-1).to_numpy()
        return np.append(found, np.int32(MISSING))[places]


@compiled(read_only(int64), read_only(uint8), read_only(int64), read_only(uint8), read_only(int32))
def _find_text(word_offsets: Any, words: Any, *, offsets: Any, values: Any, ids: Any) -> Ids:
    """Ids (N,) of N words among ascending values, by bisection."""
    word_ids = np.full(len(word_offsets) - 1, np.int32(UNSEEN))
    for i in range(len(word_ids)):
        word = words[word_offsets[i] : word_offsets[i + 1]]
        low, high = 0, len(ids)
        while low < high:
            middle = (low + high) // 2
            value = values[offsets[middle] : offsets[middle + 1]]
            k = 0
            while k < len(word) and k < len(value) and word[k] == value[k]:
                k += 1
            if k == len(word) and k == len(value):
                if ids[middle]:
                    word_ids[i] = ids[middle]
                break
            if k < len(value) and (k == len(word) or word[k] < value[k]):
                high = middle
            else:
                low = middle + 1
    return word_ids


def _load(path: str) -> npt.NDArray[Any]:
    if is_local(path):
        return np.asarray(np.load(path, mmap_mode="r"))
    with g_pathmgr.open(path, "rb") as file:
        array: npt.NDArray[Any] = np.load(file)
        return array
