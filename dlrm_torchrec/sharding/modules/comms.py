"""Codecs that send vectors and their gradients in fewer bits than float32."""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd
from typing import Any

import torch
from fbgemm_gpu.quantize_comm import QuantizationContext, QuantizedCommCodec
from fbgemm_gpu.split_embedding_configs import SparseType
from torchrec.distributed.types import CommOp, QuantizedCommCodecs

from dlrm_torchrec.sharding.config import CommsConfig, Precision

# Gradients of a mean over a large batch are too small for fp16, whose smallest number is 6e-8, and for FBGEMM's int8,
# which adds 1e-8 to the range of a row. A power of two loses no precision; with it, fp16 holds gradients up to 4.
GRADIENT_SCALE = 2.0**14
LONGEST_ROW = 32  # int8 numbers that share one scale; FBGEMM's default


def codecs(config: CommsConfig, dims: Sequence[int]) -> dict[str, QuantizedCommCodecs] | None:
    """A sharder's ``qcomm_codecs_registry`` for tables of ``dims`` columns; None when nothing is quantised.

    This replaces TorchRec's ``get_qcomm_codecs_registry``. Its bf16 is fp16 on CPU, its int8 fails if the length of a
    vector is not a multiple of 32, and it divides the loss scale out in fp16, which loses small gradients anyway.
    Raises ValueError when int8 would save nothing over fp16.
    """
    if config == CommsConfig():
        return None
    row = row_dim(dims) if config.int8 else LONGEST_ROW
    backward = Codec(config.backward, row) if config.backward == "fp32" else GradientCodec(config.backward, row)
    both = QuantizedCommCodecs(forward=Codec(config.forward, row), backward=backward)
    return {op.name: both for op in CommOp}


def row_dim(dims: Sequence[int]) -> int:
    """How many int8 numbers share a scale: a divisor of all ``dims``, so that every batch has whole rows."""
    row = gcd(LONGEST_ROW, *dims)
    if row <= 8:
        raise ValueError(
            f"tables' dims must be multiples of 16 with int8 comms, which add 8 bytes to each row of numbers: "
            f"got {sorted(set(dims))}; choose other dims, or fp16"
        )
    return row


def check_widths(widths: Sequence[int], row: int) -> None:
    """Raises ValueError unless all ``widths`` of column shards are multiples of ``row``."""
    if any(width % row for width in widths):
        raise ValueError(
            f"column shards must be multiples of {row} columns with int8 comms: got {sorted(set(widths))}; "
            "choose table_wise, or fp16"
        )


class Codec(QuantizedCommCodec):
    """FBGEMM's codec with int8 rows of ``row_dim`` numbers."""

    def __init__(self, precision: Precision, row_dim: int) -> None:
        super().__init__(SparseType(precision))
        self.row_dim = row_dim

    def create_context(self) -> QuantizationContext:
        return QuantizationContext(self.row_dim)


class GradientCodec(Codec):
    """A codec that multiplies gradients by ``GRADIENT_SCALE`` before sending and divides them afterwards."""

    def encode(self, input_tensor: torch.Tensor, ctx: Any = None) -> torch.Tensor:
        encoded: torch.Tensor = super().encode(input_tensor * GRADIENT_SCALE, ctx)
        return encoded

    def decode(self, input_tensor: torch.Tensor, ctx: Any = None) -> torch.Tensor:
        decoded: torch.Tensor = super().decode(input_tensor, ctx)
        return decoded.div_(GRADIENT_SCALE)
