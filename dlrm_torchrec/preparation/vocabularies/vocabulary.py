"""Vocabularies turn raw values of the training rows into ids by frequency; processes share their files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from iopath.common.file_io import g_pathmgr
from numba import int32, int64, uint8

from dlrm_torchrec.datasets.compiled import compiled, read_only
from dlrm_torchrec.datasets.prepared.files import is_local
from dlrm_torchrec.preparation.readers.rows import int_buffers, text_buffers
from dlrm_torchrec.preparation.vocabularies.int_tables import find_ids

MISSING, UNSEEN, FIRST = 0, 1, 2

Ids = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Vocabulary:
    """Ids of raw values: 0 missing, 1 unseen, and from 2 the known values by falling count, then by value.

    ``table`` looks them up. For int64 values it is a hash table: keys and ids, where id 0 marks a free slot. For text
    it holds all values in ascending order: offsets (N + 1), UTF-8 bytes, and ids (N,).
    """

    rows: int
    kind: str  # of the values: int64, string, or null if there are no values
    table: tuple[npt.NDArray[Any], ...]

    @classmethod
    def load(cls, rows: int, kind: str, paths: Sequence[str]) -> Vocabulary:
        """The vocabulary with the table in these ``.npy`` files; local files are mapped into memory."""
        return cls(rows, kind, tuple(_load(path) for path in paths))

    def encode(self, values: Any) -> Ids:
        """Ids (N,) of N raw values. Raises ValueError when they do not have the vocabulary's type."""
        if self.kind not in ("null", str(values.type)):
            raise ValueError(
                f"a column must have one type in all files: got {values.type} after {self.kind}; "
                "convert them to one type"
            )
        if self.kind == "int64":
            value_ids = np.empty(len(values), np.int32)
            keys, ids = self.table
            find_ids(*int_buffers(values), value_ids, keys=keys, ids=ids, if_missing=MISSING, if_absent=UNSEEN)
            return value_ids
        missing = values.is_null().to_numpy(zero_copy_only=False)
        if self.kind == "string":
            distinct = pc.dictionary_encode(values.cast(pa.large_string()))
            offsets, texts, ids = self.table
            known = _find_text(*text_buffers(distinct.dictionary), offsets=offsets, values=texts, ids=ids)
            word_ids = np.append(known, np.int32(UNSEEN))
            return np.where(missing, np.int32(MISSING), word_ids[distinct.indices.fill_null(-1).to_numpy()])
        return np.where(missing, np.int32(MISSING), np.int32(UNSEEN))


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
