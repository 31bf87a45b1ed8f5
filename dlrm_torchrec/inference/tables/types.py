"""How a row of a served table is stored: as floats, or as small integers with a scale and an offset of its own.

Row-wise quantisation with b bits: x ~ scale * q + offset, with offset = min(row), scale = (max(row) - min(row)) /
(2^b - 1) and q = 0 .. 2^b - 1. Scale and offset are float16: 4 bytes a row.
"""

from __future__ import annotations

from typing import get_args

import fbgemm_gpu  # noqa: F401 (its operators)
import torch

from dlrm_torchrec.inference.config import TableType

TABLE_TYPES: tuple[TableType, ...] = get_args(TableType)
_BITS: dict[str, int] = {"fp32": 32, "fp16": 16, "int8": 8, "int4": 4, "int2": 2}
_SCALE_AND_OFFSET_BYTES = 4


def fits(kind: TableType, dim: int) -> bool:
    """Whether rows of ``dim`` numbers take an even number of bytes, as FBGEMM wants them."""
    return dim * _BITS[kind] % 16 == 0


def check_type(table: str, kind: str, dim: int) -> None:
    """ValueError unless rows of ``dim`` numbers of this table can be stored as ``kind``."""
    if kind not in TABLE_TYPES:
        # FBGEMM ends the process at the first lookup in a bfloat16 table
        raise ValueError(
            f"type of table {table!r} must be one of {', '.join(TABLE_TYPES)}: got {kind!r}; choose fp16 in place of "
            "bfloat16, int8 in place of fp8"
        )
    if not fits(kind, dim):
        raise ValueError(
            f"dim of {kind} table {table!r} must be a multiple of {16 // _BITS[kind]}, for rows of even bytes: got "
            f"{dim}; choose a type of more bits"
        )


def row_bytes(kind: TableType, dim: int) -> int:
    """Bytes of one row of ``dim`` numbers.

    >>> [row_bytes(kind, 64) for kind in TABLE_TYPES]
    [256, 128, 68, 36, 20]
    """
    return dim * _BITS[kind] // 8 + (0 if kind.startswith("fp") else _SCALE_AND_OFFSET_BYTES)


def packed(weight: torch.Tensor, kind: TableType) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Rows (rows, dim) as FBGEMM stores them: numbers (rows, bytes) uint8, then scale and offset (rows, 4) uint8.

    ValueError when a number is not finite, or too large for float16.
    """
    weight = weight.detach().float().contiguous()
    low, high = (float(each) for each in weight.aminmax())  # which takes no memory of its own, as abs would
    largest = max(-low, high)
    limit = torch.finfo(torch.float32 if kind == "fp32" else torch.float16).max
    if not largest <= limit:
        raise ValueError(
            f"weights of a {kind} table must be finite, and at most {limit:g}: got {largest:g}; look at the training, "
            "or keep the table fp32"
        )
    if kind == "fp32":
        return weight.view(torch.uint8), None
    if kind == "fp16":
        return weight.half().view(torch.uint8), None
    rows = torch.ops.fbgemm.FloatToFusedNBitRowwiseQuantizedSBHalf(weight, _BITS[kind])
    return rows[:, :-_SCALE_AND_OFFSET_BYTES], rows[:, -_SCALE_AND_OFFSET_BYTES:]


def rounded(weight: torch.Tensor, kind: TableType) -> torch.Tensor:
    """The rows (rows, dim), float32, that a table of ``kind`` gives in place of ``weight``."""
    numbers, scales = packed(weight, kind)
    if scales is None:
        return numbers.view(torch.float32 if kind == "fp32" else torch.float16).float()
    rows: torch.Tensor = torch.ops.fbgemm.FusedNBitRowwiseQuantizedSBHalfToFloat(
        torch.cat([numbers, scales], dim=1), _BITS[kind]
    )
    return rows
