"""Fully connected layers on FBGEMM's int8 kernels, with float inputs and float outputs.

FBGEMM quantises the input while it packs it and scales the sums while it writes them. A chain of these layers is
therefore as fast as a chain whose numbers stay int8 between layers, and the last output is not rounded to 8 bits.
"""

import warnings

import torch
from torch import nn

# A CPU without VNNI adds two products in 16 bits and saturates. Inputs have 8 bits. With weights of 7 bits no such sum
# can saturate, as 2 · 255 · 63 < 2^15, so a model gives the same numbers on every CPU. Weights of 8 bits and inputs of
# 7 bits lose twice as much precision, because every row of weights has its own scale but all inputs share one.
MAX_BITS = 7
INPUT_LEVELS = 255


class Int8Linear(nn.Module):
    """A layer (B, K) -> (B, O) with weights (O, K) of ``bits`` bits, one scale per row, and optionally a ReLU.

    Raises ValueError for weights that are not finite, and if PyTorch was built without FBGEMM.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, *, relu: bool, bits: int = MAX_BITS) -> None:
        super().__init__()
        levels, scales = quantize_weight(weight, bits)
        self.packed = _pack(levels, scales, None if bias is None else bias.detach().float())
        # TorchScript keeps a float64 scale and an int64 zero point per row
        self.num_bytes = levels.numel() + 16 * len(scales) + (0 if bias is None else 4 * len(bias))
        self.relu = relu


class DynamicLinear(Int8Linear):
    """An int8 layer that takes its input range from each batch, so a row's rounding depends on the other rows."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        if self.relu:
            outputs: torch.Tensor = torch.ops.quantized.linear_relu_dynamic(features, self.packed)
        else:
            outputs = torch.ops.quantized.linear_dynamic(features, self.packed)
        return outputs


class StaticLinear(Int8Linear):
    """An int8 layer for inputs from ``low`` to ``high``; inputs outside this range saturate."""

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        *,
        relu: bool,
        low: float,
        high: float,
        bits: int = MAX_BITS,
    ) -> None:
        super().__init__(weight, bias, relu=relu, bits=bits)
        low, high = min(low, 0.0), max(high, 0.0)  # 0 must be a level
        self.scale = (high - low) / INPUT_LEVELS or 1.0
        self.zero_point = round(-low / self.scale)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        if self.relu:
            outputs: torch.Tensor = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_relu_output_fp32(
                features, self.scale, self.zero_point, self.packed
            )
        else:
            outputs = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(
                features, self.scale, self.zero_point, self.packed
            )
        return outputs


class ColumnScales(nn.Module):
    """Divides features (B, K) by one scale per column."""

    inverses: torch.Tensor

    def __init__(self, scales: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("inverses", 1 / scales)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features * self.inverses


def quantize_weight(weight: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Levels (O, K) int8, at most 2^(bits - 1) - 1 in magnitude, and scales (O,); their product is about ``weight``."""
    if not weight.isfinite().all():
        raise ValueError(
            f"weights must be finite: got {int((~weight.isfinite()).sum())} other values in a layer of shape "
            f"{tuple(weight.shape)}; take a checkpoint from before the model diverged"
        )
    weight = weight.detach().float()
    scales = weight.abs().amax(dim=1) / (2 ** (bits - 1) - 1)
    scales[scales == 0] = 1
    return (weight / scales[:, None]).round().to(torch.int8), scales


def _pack(levels: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor | None) -> torch.ScriptObject:
    engine = torch.backends.quantized.engine
    if "fbgemm" not in torch.backends.quantized.supported_engines:
        raise ValueError(f"PyTorch must have FBGEMM for int8 layers: got the engine {engine}; quantise on an x86 CPU")
    zero_points = torch.zeros(len(scales), dtype=torch.int64)
    try:
        torch.backends.quantized.engine = "fbgemm"
        with warnings.catch_warnings():
            # quantised tensors are deprecated, but FBGEMM packs nothing else; loading a saved model warns again
            warnings.simplefilter("ignore")
            weight = torch._make_per_channel_quantized_tensor(levels, scales.double(), zero_points, 0)
        packed: torch.ScriptObject = torch.ops.quantized.linear_prepack(weight, bias)
        return packed
    finally:
        torch.backends.quantized.engine = engine
