"""Replaces the fully connected layers of a float model by int8 layers."""

from collections.abc import Callable, Iterable, Mapping
from copy import copy
from functools import partial
from itertools import pairwise
from typing import Any, Literal, get_args

import torch
from torch import nn
from torchrec.modules.mlp import Perceptron

from dlrm_torchrec.inference.mlps.input_ranges import InputStatistics, observe_inputs
from dlrm_torchrec.inference.mlps.linear import MAX_BITS, ColumnScales, DynamicLinear, Int8Linear, StaticLinear
from dlrm_torchrec.inference.mlps.outliers import SparseProduct, SplitLinear, split_outliers

MLPType = Literal["dynamic", "static"]

# Narrower layers stay float because they are slower as int8: at batch size 512 they take 1.3x the time for K = 13,
# O = 256, and 2x for K = 512, O = 1.
MIN_IN_FEATURES = 64
MIN_OUT_FEATURES = 8


def quantize_mlps(
    model: nn.Module,
    kind: MLPType,
    calibration: Iterable[tuple[Any, ...]] = (),
    *,
    bits: int = MAX_BITS,
    outliers: float = 0.0,
) -> nn.Module:
    """A copy of ``model`` with int8 layers in place of each ``nn.Linear`` and its ReLU; all other parts are shared.

    Layers that are too narrow to gain stay float. So do weights that are not in an ``nn.Linear``, as in DCN's low-rank
    crosses. Raises ValueError for wrong arguments, and for weights or activations that are not finite.

    Args:
        model: the float model, on the CPU
        kind: ``dynamic`` layers take the range of their inputs from each batch; ``static`` layers take it from
            ``calibration``, so that a row's result does not depend on the other rows, and take 1.1 to 1.7 times as
            long (benchmarks/int8_gemm.py)
        calibration: batches for static layers; each is a tuple of the model's inputs
        bits: the bits of a weight, 4 to 7
        outliers: the share of each matrix that stays float, as a sparse matrix of its largest weights
    """
    if kind not in get_args(MLPType):
        raise ValueError(f"kind of int8 layers must be one of {', '.join(get_args(MLPType))}: got {kind!r}; use static")
    if not 4 <= bits <= MAX_BITS:
        raise ValueError(
            f"bits of the weights must be 4 to {MAX_BITS}: got {bits}; with 8 bits, sums saturate on CPUs without VNNI"
        )
    if not 0 <= outliers < 1:
        raise ValueError(f"outliers must be a share of the weights, 0 to 1: got {outliers}; try 0.01")
    layers = [part for part in model.modules() if type(part) is nn.Linear and _gains(part)]
    for layer in layers:
        if layer.weight.device.type != "cpu":
            raise ValueError(f"model must be on the CPU: got {layer} on {layer.weight.device}; move it with .cpu()")
    seen = observe_inputs(model, layers, calibration) if kind == "static" else {}
    build = partial(_int8, bits=bits, outliers=outliers)
    return _rebuilt(model, {layer: partial(build, layer, seen.get(layer)) for layer in layers})


def mlp_bytes(model: nn.Module) -> int:
    """Bytes of the weights and biases of all fully connected layers, float and int8, in a saved model."""
    tensors = (
        tensor
        for part in model.modules()
        if isinstance(part, nn.Linear | SparseProduct | ColumnScales)
        for tensor in (*part.parameters(), *part.buffers())
    )
    packed = sum(part.num_bytes for part in model.modules() if isinstance(part, Int8Linear))
    return packed + sum(tensor.nbytes for tensor in tensors)


def _gains(layer: nn.Linear) -> bool:
    return layer.in_features >= MIN_IN_FEATURES and layer.out_features >= MIN_OUT_FEATURES


def _int8(layer: nn.Linear, seen: InputStatistics | None, *, relu: bool, bits: int, outliers: float) -> nn.Module:
    weight, bias = layer.weight.detach(), layer.bias
    scales = None if seen is None else seen.column_scales()
    if scales is not None:
        weight = weight * scales
    dense, sparse = split_outliers(weight, outliers)
    fused = relu and not outliers
    product: nn.Module
    if seen is None:
        product = DynamicLinear(dense, bias, relu=fused, bits=bits)
    else:
        low, high = (seen.low, seen.high) if scales is None else (seen.low / scales, seen.high / scales)
        least, most = float(low.min()), float(high.max())
        product = StaticLinear(dense, bias, relu=fused, low=least, high=most, bits=bits)
    if outliers:
        product = SplitLinear(product, sparse, relu=relu)
    return product if scales is None else nn.Sequential(ColumnScales(scales), product)


def _rebuilt(module: nn.Module, layers: Mapping[nn.Module, Callable[..., nn.Module]]) -> nn.Module:
    """``module`` with new layers from ``layers[old](relu=...)``; ``module`` itself if it has none of the old layers."""
    if module in layers:
        return layers[module](relu=False)
    if isinstance(module, Perceptron) and module._linear in layers and _is_relu(module._activation_fn):
        return layers[module._linear](relu=True)
    parts = {name: part for name, part in module._modules.items() if part is not None}
    pairs = pairwise(parts.items()) if isinstance(module, nn.Sequential) else ()
    fused = {name: after for (name, part), (after, following) in pairs if part in layers and _is_relu(following)}
    rebuilt: dict[str, nn.Module | None] = {
        name: layers[part](relu=name in fused) if part in layers else _rebuilt(part, layers)
        for name, part in parts.items()
        if name not in fused.values()
    }
    if all(rebuilt.get(name) is part for name, part in parts.items()):
        return module
    clone = copy(module)
    clone._modules = rebuilt
    return clone


def _is_relu(activation: object) -> bool:
    return isinstance(activation, nn.ReLU) or activation in (torch.relu, nn.functional.relu)
