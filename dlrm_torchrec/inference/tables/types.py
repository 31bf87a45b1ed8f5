"""The types of rows of a served table: floats, or small integers with a scale and an offset for each row.

Row-wise quantisation with b bits: x ~ scale * q + offset, with offset = min(row), scale = (max(row) - min(row)) /
(2^b - 1) and q = 0 .. 2^b - 1. Scale and offset are float16 and take 4 bytes per row.
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
    """Whether rows of ``dim`` numbers have an even number of bytes, as FBGEMM requires."""
    return dim * _BITS[kind] % 16 == 0


def check_type(table: str, kind: str, dim: int) -> None:
    """Raises ValueError unless rows of ``dim`` numbers can be stored as ``kind``."""
    if kind not in TABLE_TYPES:
        # FBGEMM ends the process at the first lookup in a bfloat16 table
        raise ValueError(
            f"type of table {table!r} must be one of {', '.join(TABLE_TYPES)}: got {kind!r}; choose fp16 instead of "
            "bfloat16, or int8 instead of fp8"
        )
    if not fits(kind, dim):
        raise ValueError(
            f"dim of {kind} table {table!r} must be a multiple of {16 // _BITS[kind]} because rows need an even number "
            f"of bytes: got {dim}; choose a type with more bits"
        )


def row_bytes(kind: TableType, dim: int) -> int:
    """Bytes of one row of ``dim`` numbers.

    >>> [row_bytes(kind, 64) for kind in TABLE_TYPES]
    [256, 128, 68, 36, 20]
    """
    return dim * _BITS[kind] // 8 + (0 if kind.startswith("fp") else _SCALE_AND_OFFSET_BYTES)


def packed(weight: torch.Tensor, kind: TableType) -> tuple[torch.Tensor, torch.Tensor | None]:
    """``weight`` (rows, dim) in FBGEMM's form: numbers (rows, bytes) uint8, and scale and offset (rows, 4) uint8.

    Raises ValueError when a number is not finite, or too large for float16.
    """
    weight = weight.detach().float().contiguous()
    low, high = (float(each) for each in weight.aminmax())  # unlike abs, this allocates no memory
    largest = max(-low, high)
    limit = torch.finfo(torch.float32 if kind == "fp32" else torch.float16).max
    if not largest <= limit:
        raise ValueError(
            f"weights of a {kind} table must be finite and at most {limit:g}: got {largest:g}; check the training, or "
            "keep the table fp32"
        )
    if kind == "fp32":
        return weight.view(torch.uint8), None
    if kind == "fp16":
        return weight.half().view(torch.uint8), None
    rows = torch.ops.fbgemm.FloatToFusedNBitRowwiseQuantizedSBHalf(weight, _BITS[kind])
    return rows[:, :-_SCALE_AND_OFFSET_BYTES], rows[:, -_SCALE_AND_OFFSET_BYTES:]


def rounded(weight: torch.Tensor, kind: TableType) -> torch.Tensor:
    """The rows (rows, dim), float32, that a table of type ``kind`` returns for ``weight``."""
    numbers, scales = packed(weight, kind)
    if scales is None:
        return numbers.view(torch.float32 if kind == "fp32" else torch.float16).float()
    rows: torch.Tensor = torch.ops.fbgemm.FusedNBitRowwiseQuantizedSBHalfToFloat(
        torch.cat([numbers, scales], dim=1), _BITS[kind]
    )
    return rows
