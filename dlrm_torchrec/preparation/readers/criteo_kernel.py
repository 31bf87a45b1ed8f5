"""Turns lines of Criteo's TSV into numbers, in one pass over their bytes."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numba import boolean, float32, float64, int64, uint8, uint64

from dlrm_torchrec.compiled import compiled, read_only

_TAB, _MINUS, _ZERO = np.uint8(0x09), np.uint8(0x2D), np.uint8(0x30)
_MAX_DIGITS = 18  # so many digits always fit an int64
_HEX_DIGITS = 8
_WORDS = numba.types.Array(uint64, 1, "A", readonly=True, aligned=False)
# a value for each of the eight bytes of a word
_01, _06, _0F, _30, _F0 = (np.uint64(0x0101010101010101 * byte) for byte in (0x01, 0x06, 0x0F, 0x30, 0xF0))
_LETTER = np.uint64(ord("a") - ord("0") - 10)


def words_of(data: np.ndarray[Any, np.dtype[np.uint8]]) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """A view of every eight neighbouring bytes as one number, with the first byte lowest."""
    return np.ndarray(max(0, len(data) - 7), "<u8", data, strides=(1,))


@numba.njit(inline="always")
def _hex32(word: Any) -> Any:
    """The value of eight hexadecimal digits in upper or lower case, decoded all at once; -1 if they are not digits."""
    letter = word >> np.uint64(6) & _01
    digit = (word & _0F) + letter * np.uint64(9)
    as_text = digit + _30 + (digit + _06 >> np.uint64(4) & _01) * _LETTER
    if digit & _F0 or as_text != word | letter << np.uint64(5):
        return -1
    # Each byte holds one digit, the first digit lowest. Join neighbours into bytes, then pairs, then fours.
    x = (digit << np.uint64(4) | digit >> np.uint64(8)) & np.uint64(0x00FF00FF00FF00FF)
    x = (x << np.uint64(8) | x >> np.uint64(16)) & np.uint64(0x0000FFFF0000FFFF)
    return np.int64((x << np.uint64(16) | x >> np.uint64(32)) & np.uint64(0xFFFFFFFF))


@compiled(
    read_only(uint8),
    _WORDS,
    read_only(int64),
    read_only(int64),
    boolean,
    int64,
    float32[::1],
    float64[:, ::1],
    int64[:, ::1],
    boolean[:, ::1],
    boolean[::1],
)
def parse_lines(
    data: Any,
    words: Any,
    starts: Any,
    ends: Any,
    *,
    labelled: bool,
    max_ind_range: int,
    label: Any,
    dense: Any,
    sparse: Any,
    missing: Any,
    good: Any,
) -> None:
    """Write line i, ``data[starts[i]:ends[i]]``, to column i of the arrays that follow, and to ``good`` if it is good.

    A good line has its label (if ``labelled``), integers of at most 18 digits, and categories of eight hexadecimal
    digits. A field may be empty: NaN in ``dense`` (D, N), true in ``missing`` (S, N). Categories are taken modulo
    ``max_ind_range``. Lines that are not good may still be well-formed; a careful reader decides. ``words`` are
    ``words_of(data)``.
    """
    last = sparse.shape[0] - 1
    for i in range(len(starts)):
        at, end = starts[i], ends[i]
        good[i] = False
        if labelled:
            if end - at < 2 or data[at + 1] != _TAB or data[at] & np.uint8(0xFE) != _ZERO:
                continue
            label[i] = data[at] - _ZERO
            at += 2
        well_formed = True
        for j in range(dense.shape[0]):
            negative = at < end and data[at] == _MINUS
            at += negative
            first, value = at, 0
            while at < end:
                digit = np.uint8(data[at] - _ZERO)
                if digit > 9:
                    break
                value = value * 10 + int(digit)
                at += 1
            digits = at - first
            if digits > _MAX_DIGITS or (negative and digits == 0) or at >= end or data[at] != _TAB:
                well_formed = False
                break
            at += 1
            dense[j, i] = np.nan if digits == 0 else -float64(value) if negative else float64(value)
        if not well_formed:
            continue
        for j in range(last + 1):
            value, empty = 0, at >= end or data[at] == _TAB
            if not empty:
                value = _hex32(words[at]) if end - at >= _HEX_DIGITS else -1
                if value < 0:
                    well_formed = False
                    break
                if value >= max_ind_range:
                    value %= max_ind_range
                at += _HEX_DIGITS
            sparse[j, i] = value
            missing[j, i] = empty
            if j < last:
                if at >= end or data[at] != _TAB:
                    well_formed = False
                    break
                at += 1
        good[i] = well_formed and at == end
