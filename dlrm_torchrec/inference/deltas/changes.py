"""What differs between two arrays of rows, and between two vocabularies."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

_BLOCK_BYTES = 1 << 24  # compared at once

Array = np.ndarray[Any, Any]
Numbers = npt.NDArray[np.int64]


def changed_rows(old: Array, new: Array) -> Numbers:
    """The numbers of the rows of ``new`` whose bytes are not those of ``old``, ascending; rows after its end are new.

    Both are (rows, ...). Raises ValueError when their types or the shapes of a row differ.
    """
    if old.dtype != new.dtype or old.shape[1:] != new.shape[1:]:
        raise ValueError(
            f"rows of a table must keep their type: got {new.dtype} {new.shape[1:]} after {old.dtype} {old.shape[1:]}; "
            "publish a full package"
        )
    common = min(len(old), len(new))
    row_bytes = new.dtype.itemsize * int(np.prod(new.shape[1:], dtype=np.int64))
    word = next(np.dtype(f"u{size}") for size in (8, 4, 2, 1) if row_bytes % size == 0)
    block = max(_BLOCK_BYTES // row_bytes // 8, 1) * 8  # starts at a whole word
    found = []
    for first in range(0, common, block):
        parts = [
            np.ascontiguousarray(rows[first : min(first + block, common)]).reshape(-1).view(word) for rows in (old, new)
        ]
        rows = np.flatnonzero(parts[0] != parts[1]) // (row_bytes // word.itemsize)
        found.append(first + rows[np.diff(rows, prepend=-1) > 0])
    return np.concatenate([*found, np.arange(common, len(new))])


def with_rows(old: Array, numbers: Array, rows: Array, total: int) -> Array:
    """The first ``total`` rows of ``old`` with ``rows`` at ``numbers``; ``old`` itself, changed, if it is as long."""
    if total != len(old):
        changed = np.empty((total, *old.shape[1:]), old.dtype)
        changed[: len(old)] = old[:total]
        old = changed
    old[numbers] = rows
    return old


def changed_values(old: Any, new: Any) -> Numbers:
    """The places of ``new``, an Arrow array, whose values are not those of ``old``; places after its end are new.

    Null, which is the place of a free id, is a value too.
    """
    common = min(len(old), len(new))
    kind = new.type if old.type == new.type else pa.string()  # a first text turns whole numbers into texts
    before, after = old[:common].cast(kind), new[:common].cast(kind)
    same = pc.or_(pc.and_(before.is_null(), after.is_null()), pc.equal(before, after).fill_null(fill_value=False))
    changed: Numbers = np.flatnonzero(~same.to_numpy(zero_copy_only=False))
    return np.concatenate([changed, np.arange(common, len(new))])


def with_values(old: Any, places: Numbers, values: Any, total: int) -> Any:
    """The first ``total`` values of ``old`` with ``values`` at ``places``, in the type of ``values``."""
    kind = values.type if old.type == values.type else pa.string()
    order = np.arange(total)
    order[places] = len(old) + np.arange(len(places))
    return pa.concat_arrays([old.cast(kind), values.cast(kind)]).take(order).cast(values.type)
