"""The separated fields of lines as offsets, and whole columns of fields as numbers.

Numbers are computed from the bytes of all fields at once, with a flag for each malformed field.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dlrm_torchrec.preparation.readers.lines import Lines
from dlrm_torchrec.preparation.readers.rows import Ints, Mask

_MINUS, _ZERO = ord("-"), ord("0")
_MAX_DIGITS = 19  # of an int64; any 19 digits fit a uint64
_HEX_DIGITS = 8
_NO_DIGIT = 0xFF
_DIGIT = np.full(256, _NO_DIGIT, np.uint8)
for _value in range(16):
    _DIGIT[[ord(f"{_value:x}"), ord(f"{_value:X}")]] = _value


@dataclass(frozen=True)
class Fields:
    """Field ``j`` of line ``i`` is ``data[starts[i, j]:ends[i, j]]``; all fields of a malformed line are empty."""

    data: npt.NDArray[np.uint8]
    starts: Ints  # (N, C)
    ends: Ints  # (N, C)

    def columns(self, first: int, last: int) -> Fields:
        return Fields(self.data, self.starts[:, first:last], self.ends[:, first:last])


def split_fields(lines: Lines, separator: str, columns: int) -> tuple[Fields, Mask]:
    """Fields (N, columns) of N lines, and which lines have another number of fields."""
    separators = np.flatnonzero(lines.data == ord(separator))
    first = np.searchsorted(separators, lines.starts)
    malformed = np.searchsorted(separators, lines.ends) - first != columns - 1
    at = np.append(separators, np.zeros(columns, np.int64))[first[:, None] + np.arange(columns - 1)]
    starts = np.concatenate([lines.starts[:, None], at + 1], axis=1)
    ends = np.concatenate([at, lines.ends[:, None]], axis=1)
    starts[malformed] = ends[malformed] = 0
    return Fields(lines.data, starts, ends), malformed


def parse_int64(fields: Fields) -> tuple[npt.NDArray[np.float64], Mask]:
    """The decimal int64 of each field as float64, NaN for an empty field, and which fields are malformed."""
    shape = fields.starts.shape
    starts, ends = fields.starts.ravel(), fields.ends.ravel()
    data = np.append(fields.data, np.uint8(0))
    empty = starts == ends
    negative = ~empty & (data[starts] == _MINUS)
    digits = ends - starts - negative
    malformed = ~empty & ((digits < 1) | (digits > _MAX_DIGITS))
    value = np.zeros(len(starts), np.uint64)
    position = starts + negative
    active = np.flatnonzero(~empty & ~malformed)
    while len(active):
        digit = data[position[active]] - np.uint8(_ZERO)
        malformed[active[digit > 9]] = True
        value[active] = value[active] * np.uint64(10) + digit
        position[active] += 1
        active = active[position[active] < ends[active]]
    malformed |= value > np.uint64(2**63 - 1) + negative.astype(np.uint64)
    signed = np.where(negative, -value.astype(np.float64), value.astype(np.float64))
    signed[empty] = np.nan
    return signed.reshape(shape), malformed.reshape(shape)


def parse_hex32(fields: Fields) -> tuple[Ints, Mask, Mask]:
    """The value of each field of eight hexadecimal digits, which fields are empty, and which are malformed."""
    starts = fields.starts
    length = fields.ends - starts
    data = np.append(fields.data, np.zeros(_HEX_DIGITS, np.uint8))
    # every eight neighbouring bytes as one word, so that one index reads a whole field
    words = np.ndarray(len(data) - _HEX_DIGITS + 1, "<u8", data.data, strides=(1,))
    digits = _DIGIT[words[starts.ravel()].view(np.uint8)].view("<u8").reshape(starts.shape)
    valid = (length == _HEX_DIGITS) & (digits & np.uint64(0x8080808080808080) == 0)
    # Each byte holds one digit, the first digit lowest. Join neighbours into bytes, then pairs, then fours.
    x = np.where(valid, digits, np.uint64(0))
    x = (x << np.uint64(4) | x >> np.uint64(8)) & np.uint64(0x00FF00FF00FF00FF)
    x = (x << np.uint64(8) | x >> np.uint64(16)) & np.uint64(0x0000FFFF0000FFFF)
    x = (x << np.uint64(16) | x >> np.uint64(32)) & np.uint64(0xFFFFFFFF)
    return x.astype(np.int64), length == 0, ~valid & (length > 0)
