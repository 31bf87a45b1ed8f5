"""FBGEMM's int8 layers alone, against float32 layers, in the widths of RMC1 to RMC3 and of DLRM's own profile.

    OMP_NUM_THREADS=1 python benchmarks/int8_gemm.py                                   # a minute
    OMP_NUM_THREADS=1 python benchmarks/int8_gemm.py --shapes rmc3 --sizes 64 --layers # each layer alone

A layer is a product, a bias and a ReLU, with float inputs and outputs. "fp32" is torch's, and "bf16" is torch's with
inputs and weights in bfloat16. "static" and "dynamic" are FBGEMM's, as recipes/quantize_dlrm.py builds them: they round
their inputs while they pack them, to a range that is fixed or that they take from the batch. "product" is torch's int8
product of numbers that are rounded already: what is left if rounding, scales and the ReLU cost nothing. The contenders
take turns with all layers of a model but the one for logits; a ratio is the median over turns. Times are what the
thread had of the core.

Exits with 1 unless each output of the int8 layers is within the rounding of inputs and weights of float64's.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from statistics import median

import torch
from torch.nn.functional import linear

from dlrm_torchrec.inference.mlps.linear import INPUT_LEVELS, MAX_BITS, DynamicLinear, StaticLinear, quantize_weight
from dlrm_torchrec.recipe import load_training_recipe

BASE, STATIC, DYNAMIC = "fp32", "static", "dynamic"
CONTENDERS = (BASE, STATIC, DYNAMIC, "bf16", "product")
Widths = tuple[int, int]  # of the input and the output of a layer


def layers_of(shape: str) -> list[Widths]:
    """Both MLPs of a preset of recipes/train_rmc.py, without the layer that gives the logit."""
    cfg = load_training_recipe("train_rmc").PRESETS[shape]
    vectors, dim = 1 + len(cfg.shape.sparse), cfg.bottom[-1]
    top = vectors * dim if cfg.interaction == "cat" else dim + vectors * (vectors - 1) // 2
    return [*pairwise((len(cfg.shape.dense), *cfg.bottom)), *pairwise((top, *cfg.top[:-1]))]


class Layer:
    """One layer in all forms, with the same weights and inputs (batch, width)."""

    def __init__(self, widths: Widths, batch: int) -> None:
        width, outputs = widths
        self.features, self.bias = torch.randn(batch, width), torch.randn(outputs)
        self.weight = torch.randn(outputs, width) / width**0.5
        self.low, self.high = float(self.features.min()), float(self.features.max())
        static = StaticLinear(self.weight, self.bias, relu=True, low=self.low, high=self.high)
        dynamic = DynamicLinear(self.weight, self.bias, relu=True)
        half = [tensor.bfloat16() for tensor in (self.features, self.weight, self.bias)]
        levels = self.features.mul(20).to(torch.int8), quantize_weight(self.weight, MAX_BITS)[0].t()
        self.forms: dict[str, Callable[[], torch.Tensor]] = {
            BASE: lambda: linear(self.features, self.weight, self.bias).relu_(),
            STATIC: lambda: static(self.features),
            DYNAMIC: lambda: dynamic(self.features),
            "bf16": lambda: linear(*half).relu_(),
            "product": lambda: torch._int_mm(*levels),
        }

    def correct(self, form: str) -> bool:
        """Whether each output is as near to that of float64 as half a step of each input and each weight allows."""
        x, w = self.features.double(), self.weight.double()
        exact = linear(x, w, self.bias.double()).relu()
        half_x = (max(self.high, 0) - min(self.low, 0)) / INPUT_LEVELS / 2
        half_w = quantize_weight(self.weight, MAX_BITS)[1].double() / 2
        most = x.abs().sum(1, keepdim=True) * half_w + half_x * w.abs().sum(1) + x.size(1) * half_x * half_w
        return bool(((self.forms[form]() - exact).abs() <= 1.01 * most + 1e-4).all())


def measure(layers: list[Layer], rounds: int) -> dict[str, list[float]]:
    """Seconds of all layers in each form, turn by turn."""
    seconds: dict[str, list[float]] = {form: [] for form in CONTENDERS}
    for number in range(rounds + 2):
        for form, taken in seconds.items():
            start = time.thread_time()
            for layer in layers:
                layer.forms[form]()
            if number >= 2:  # the first calls make kernels
                taken.append(time.thread_time() - start)
    return seconds


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shapes = ["rmc1", "rmc2", "rmc3", "dlrm-s"]
    parser.add_argument("--shapes", nargs="+", choices=shapes, default=shapes)
    parser.add_argument("--sizes", nargs="+", type=int, default=[1, 16, 64, 256], help="batch sizes")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--layers", action="store_true", help="measure each layer alone")
    args = parser.parse_args()
    torch.set_num_threads(1)
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    groups: dict[str, list[Widths]] = {}
    for shape in args.shapes:
        widths = layers_of(shape)
        groups |= {f"{shape} {a} x {b}": [(a, b)] for a, b in widths} if args.layers else {shape: widths}
    print(f"| layers | batch | fp32 us | Gop/s | {' | '.join(CONTENDERS[1:])} |\n{'|---' * (3 + len(CONTENDERS))}|")
    wrong = set()
    for name, widths in groups.items():
        for batch in args.sizes:
            layers = [Layer(each, batch) for each in widths]
            wrong |= {f"{form} {name}" for form in (STATIC, DYNAMIC) for each in layers if not each.correct(form)}
            seconds = measure(layers, args.rounds)
            base, operations = median(seconds[BASE]), 2 * batch * sum(a * b for a, b in widths)
            ratios = [
                f"{median(own / base for own, base in zip(seconds[form], seconds[BASE], strict=True)):.2f}"
                for form in CONTENDERS[1:]
            ]
            speed = f"{1e6 * base:,.0f} | {operations / base / 1e9:.1f}"
            print(f"| {name} | {batch} | {speed} | {' | '.join(ratios)} |", flush=True)
    if wrong:
        sys.exit(f"error: outputs are farther from float64 than rounding explains: {', '.join(sorted(wrong))}")


if __name__ == "__main__":
    main()
