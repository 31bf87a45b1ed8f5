"""Layers of HSTU over jagged histories against padded multi-head attention of the same sizes, forward and backward.

    python benchmarks/hstu_attention.py
    python benchmarks/hstu_attention.py --mean 1000

The lengths of histories are log-normal: the longest of a batch is several times the mean. The peer pads all histories
to the longest one and is the strongest padded form of torch: ``nn.MultiheadAttention`` between a norm and a residual,
whose causal mask lets it use the fused kernel and hides the padding, too. It has neither gate nor bias, so it computes
fewer products per token. Memory is what a process has at most beyond what it had before the step, for batches of one,
two and four times the tokens. With ``--sigma 0`` all histories are equally long, and nothing is padded.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
import tyro
from torch import nn

from dlrm_torchrec.models.hstu.attention.layout import make_layout
from dlrm_torchrec.models.hstu.config import HSTUConfig, Variant
from dlrm_torchrec.models.hstu.layer import HSTULayers

MOST = 4096  # tokens of a history


class PaddedLayer(nn.Module):
    """x + attention(norm(x)), causal."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.attention = nn.MultiheadAttention(dim, heads, batch_first=True)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        normed = self.norm(x)
        attended: torch.Tensor = self.attention(
            normed, normed, normed, attn_mask=mask, is_causal=True, need_weights=False
        )[0]
        return x + attended


def draw_lengths(mean: int, tokens: int, sigma: float) -> torch.Tensor:
    """Log-normal lengths of this mean, of as many users as have about so many tokens."""
    generator = torch.Generator().manual_seed(0)
    users = max(2, tokens // mean)
    drawn = mean * (sigma * torch.randn(users, generator=generator) - sigma**2 / 2).exp()
    return drawn.round().long().clamp(1, MOST)


def step_seconds(step: Callable[[], None], repetitions: int) -> float:
    """The median time of a step after one to warm up."""
    seconds = []
    for _ in range(repetitions + 1):
        begin = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - begin)
    return median(seconds[1:])


def jagged_step(config: HSTUConfig, lengths: torch.Tensor) -> Callable[[], None]:
    """A training step of HSTU's layers."""
    layers, tokens = HSTULayers(config), int(lengths.sum())
    x = torch.randn(tokens, config.dim, requires_grad=True)
    times = torch.randint(10**8, (tokens,))

    def step() -> None:
        layers(x, make_layout(lengths, torch.zeros_like(lengths)), times, times).sum().backward()

    return step


def padded_step(config: HSTUConfig, lengths: torch.Tensor) -> Callable[[], None]:
    """A training step of padded attention."""
    longest = int(lengths.max())
    layers = nn.ModuleList(PaddedLayer(config.dim, config.heads) for _ in range(config.layers))
    x = torch.randn(len(lengths), longest, config.dim, requires_grad=True)
    mask = nn.Transformer.generate_square_subsequent_mask(longest)

    def step() -> None:
        y = x
        for layer in layers:
            y = layer(y, mask)
        y.sum().backward()

    return step


def peak_megabytes() -> float:
    """The most memory that this process has had. Its parent's, which ``resource`` counts as well, is not in it."""
    (line,) = (each for each in Path("/proc/self/status").read_text().splitlines() if each.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def added_megabytes(config: HSTUConfig, lengths: torch.Tensor) -> float:
    """What one step of HSTU's layers adds to the peak memory of this process."""
    step = jagged_step(config, lengths)
    before = peak_megabytes()
    step()
    return peak_megabytes() - before


def main(
    *,
    mean: tuple[int, ...] = (50, 200, 1000),
    tokens: int = 16_384,
    variants: tuple[Variant, ...] = ("mlperf", "paper"),
    sigma: float = 1.0,
    dim: int = 128,
    heads: int = 4,
    layers: int = 2,
    repetitions: int = 3,
    memory: int = 0,
) -> None:
    """Prints one line for each variant and mean length.

    Args:
        mean: mean lengths of histories
        tokens: about so many tokens of a batch
        variants: variants of the layer
        sigma: standard deviation of the logarithms of lengths
        dim: numbers of a token
        heads: heads of a layer
        layers: layers of a model
        repetitions: timed steps
        memory: print only the megabytes that one step of so many tokens adds; 0 means all
    """
    for variant in variants:
        config = HSTUConfig(
            variant=variant, dim=dim, heads=heads, key_dim=dim // heads, value_dim=dim // heads, layers=layers,
            most_tokens=MOST, input_dropout=0, dropout=0,
        )  # fmt: skip
        for length in mean:
            if memory:
                print(added_megabytes(config, draw_lengths(length, memory, sigma)))
                continue
            lengths = draw_lengths(length, tokens, sigma)
            ours = step_seconds(jagged_step(config, lengths), repetitions)
            padded = step_seconds(padded_step(config, lengths), repetitions)
            options = [
                f"--mean={length}",
                f"--variants={variant}",
                f"--sigma={sigma}",
                f"--dim={dim}",
                f"--heads={heads}",
                f"--layers={layers}",
            ]
            peaks = [
                float(subprocess.check_output([sys.executable, __file__, *options, f"--memory={tokens * factor}"]))
                for factor in (1, 2, 4)
            ]
            print(
                json.dumps(
                    {
                        "variant": variant,
                        "mean": length,
                        "users": len(lengths),
                        "longest": int(lengths.max()),
                        "tokens": int(lengths.sum()),
                        "jagged_ms": round(1e3 * ours),
                        "padded_ms": round(1e3 * padded),
                        "ratio": round(padded / ours, 2),
                        "peak_megabytes": [round(each) for each in peaks],
                    }
                ),
                flush=True,
            )


if __name__ == "__main__":
    tyro.cli(main)
