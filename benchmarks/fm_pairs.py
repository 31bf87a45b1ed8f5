"""Time of a factorisation machine's pairs by the number of its features: by one square of a sum, and pair by pair.

    python benchmarks/fm_pairs.py

Both ways compute Σ_{i<j} <v_i, v_j> of the same rows in turns, forward and backward, and the benchmark checks that
values and gradients agree. Pair by pair, all products are one matrix product of the rows with themselves, as in DLRM,
of which the lower triangle counts. Times are those of the processor on one thread, so that other processes count
little, and the fastest of all rounds. The exponent is the slope of the logarithm of the time over that of the number of
features, by least squares. With few features both ways take the time of calling operators, so the exponent is also
given for the larger half of the numbers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median

import numpy as np
import torch
import tyro

from dlrm_torchrec.models.factorization_machine import Pairs

Way = Callable[[torch.Tensor], torch.Tensor]


def pair_by_pair(rows: torch.Tensor) -> torch.Tensor:
    """What ``Pairs`` computes without its bias, (B, 1) from (B, n, dim), with n (n - 1) / 2 products."""
    linear, factors = rows[:, :, :1].sum(dim=1), rows[:, :, 1:]
    products = torch.bmm(factors, factors.transpose(1, 2))
    return linear + products.tril(-1).sum(dim=(1, 2)).unsqueeze(1)


@dataclass
class Times:
    """Milliseconds of the processor, of every round."""

    forward: list[float] = field(default_factory=list)
    backward: list[float] = field(default_factory=list)

    @property
    def both(self) -> list[float]:
        return [sum(each) for each in zip(self.forward, self.backward, strict=True)]


def timed(way: Way, rows: torch.Tensor, weights: torch.Tensor, times: Times) -> tuple[torch.Tensor, torch.Tensor]:
    """The values of the rows and the gradient of their weighted sum; adds the time of both to ``times``."""
    rows = rows.detach().requires_grad_()
    start = time.process_time()
    values = way(rows)
    middle = time.process_time()
    values.backward(weights)
    end = time.process_time()
    times.forward.append(1e3 * (middle - start))
    times.backward.append(1e3 * (end - middle))
    assert rows.grad is not None
    return values.detach(), rows.grad


def compare(features: int, *, batch_size: int, dim: int, rounds: int) -> tuple[Times, Times]:
    """The times of the square of a sum and of pairs, for rows of so many features. Raises if their results differ."""
    generator = torch.Generator().manual_seed(features)
    rows = torch.randn(batch_size, features, dim, generator=generator)
    weights = torch.randn(batch_size, 1, generator=generator)
    ways: dict[Way, Times] = {Pairs(): Times(), pair_by_pair: Times()}
    for _ in range(rounds + 2):
        found = [timed(way, rows, weights, times) for way, times in ways.items()]
        for ours, others in zip(*found, strict=True):
            torch.testing.assert_close(ours, others, rtol=1e-4, atol=1e-4 * features * dim**0.5)
    linear, square = (Times(each.forward[2:], each.backward[2:]) for each in ways.values())
    return linear, square


def exponent(features: Sequence[int], milliseconds: Sequence[float]) -> float:
    """The slope of log(milliseconds) over log(features).

    >>> round(exponent([8, 16, 64], [3 * n**2 for n in (8, 16, 64)]), 6)
    2.0
    """
    return float(np.polyfit(np.log(features), np.log(milliseconds), 1)[0])


def main(
    *,
    features: tuple[int, ...] = (8, 16, 32, 64, 128, 256, 512),
    batch_size: int = 64,
    dim: int = 16,
    rounds: int = 40,
) -> None:
    """Prints the milliseconds and their ratio for each number of features, then the exponents."""
    torch.set_num_threads(1)
    found = [compare(count, batch_size=batch_size, dim=dim, rounds=rounds) for count in features]
    print(f"{'':>8}   {'square of a sum':^19}   {'pair by pair':^19}")
    print("features   forward    backward   forward    backward    ratio (median of rounds)")
    for count, (linear, square) in zip(features, found, strict=True):
        rounds_ratio = median(b / a for a, b in zip(linear.both, square.both, strict=True))
        cells = "   ".join(f"{min(each.forward):7.3f}    {min(each.backward):8.3f}" for each in (linear, square))
        print(f"{count:>8}   {cells}   {min(square.both) / min(linear.both):6.2f} ({rounds_ratio:.2f})")
    half = len(features) // 2
    for title, place in (("square of a sum", 0), ("pair by pair", 1)):
        fastest = [min(each[place].both) for each in found]
        upper = exponent(features[half:], fastest[half:])
        print(f"{title}: n^{exponent(features, fastest):.2f}; from {features[half]} features on n^{upper:.2f}")


if __name__ == "__main__":
    tyro.cli(main)
