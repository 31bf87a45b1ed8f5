"""How many elements an embedding needs to hold the information of a lookup (arXiv 1901.02103).

    python -m dlrm_torchrec.embeddings.dimension_rule --items 20_000_000 --hot 1 100 --bits 8 32

A vector of d elements of s bits holds d·s bits, so a lookup with an entropy of H bits needs d >= H / s. The formulas
assume that all lookups are equally likely. Real lookups are not, so if you can, count how often each combination
occurs and use the empirical entropy.

For k > 1, the entropies in the paper's Table 1 and examples (read in a translation) are about k·log2(e) below its own
formula log2 C(n, k), and its dimensions for 8 and 16 bits fill whole words of 32 bits. This module uses the formulas.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import product

import tyro


def k_hot_entropy_bits(items: int, hot: int, *, weight_bits: int = 0) -> float:
    """Entropy in bits of ``hot`` ids out of ``items``, each with a weight of ``weight_bits`` bits: t·k + log2 C(n, k).

    >>> k_hot_entropy_bits(32, 1)
    5.0
    >>> round(k_hot_entropy_bits(20_000_000, 100, weight_bits=16), 1)
    3500.6
    """
    if not 1 <= hot <= items:
        raise ValueError(f"hot must lie between 1 and items: got {hot} of {items} items; lower hot or raise items")
    if weight_bits < 0:
        raise ValueError(f"weight bits must not be negative: got {weight_bits}; give 0 for a lookup without weights")
    return weight_bits * hot + _log2_combinations(items, hot)


def empirical_entropy_bits(counts: Iterable[int]) -> float:
    """Entropy in bits of the observed outcomes, from the count of each distinct outcome: -Σ p log2 p.

    >>> from collections import Counter
    >>> bags = [{1, 2}, {2, 1}, {3}, {4}]
    >>> empirical_entropy_bits(Counter(map(frozenset, bags)).values())
    1.5
    """
    seen = [int(count) for count in counts]
    least, total = min(seen, default=0), sum(seen)
    if least < 0 or total == 0:
        raise ValueError(
            f"counts must not be negative, nor all be 0: got {len(seen)} counts, the least {least}, sum {total}; "
            "count how often each combination occurs"
        )
    return math.fsum(count / total * math.log2(total / count) for count in seen if count)


def required_dim(entropy_bits: float, bits: int) -> int:
    """ceil(H / s): how many elements of ``bits`` bits hold ``entropy_bits``.

    An entropy within 1e-12 (relative) of a whole number of elements counts as that number, because the difference is
    a rounding error.

    >>> required_dim(24.3, bits=32), required_dim(64.00000000000001, bits=32)
    (1, 2)
    """
    if not 0 <= entropy_bits < math.inf:
        raise ValueError(f"entropy must be finite and not negative: got {entropy_bits} bits; compute it from counts")
    if bits < 1:
        raise ValueError(f"bits of an element must be at least 1: got {bits}; give 32 for float32")
    elements = entropy_bits / bits
    nearest = round(elements)
    return nearest if math.isclose(elements, nearest, rel_tol=1e-12) else math.ceil(elements)


def _log2_combinations(n: int, k: int) -> float:
    """log2 C(n, k) with a relative error of about 1e-14 for any n.

    lgamma(n + 1) - lgamma(n - k + 1), a difference of two far larger numbers, would lose all digits as n grows. This
    function subtracts Stirling's series term by term instead.
    """
    k = min(k, n - k)
    if n < 64:  # Stirling's series is not precise here
        return math.log2(math.comb(n, k))
    rest = n - k
    falling = k * math.log(n) - (rest + 0.5) * math.log1p(-k / n) - k + _stirling_tail(n) - _stirling_tail(rest)
    return (falling - math.lgamma(k + 1)) / math.log(2)


def _stirling_tail(x: float) -> float:
    """ln x! - ((x + 1/2) ln x - x + ln(2π) / 2), with an error of at most 2e-14 for x >= 32."""
    return 1 / (12 * x) - 1 / (360 * x**3) + 1 / (1260 * x**5)


def main(
    items: tuple[int, ...], hot: tuple[int, ...] = (1,), bits: tuple[int, ...] = (32,), weight_bits: int = 0
) -> None:
    """Print the entropy of a k-hot lookup and the dimension that holds it, for every pair of items and hot.

    Args:
        items: the number of distinct ids (n)
        hot: the number of ids per lookup (k)
        bits: the bits of one element of the embedding (s)
        weight_bits: the bits of the weight of each id (t); 0 means no weights
    """
    lines = [["items", "hot", "weight bits", "entropy (bits)", *(f"dim at {s} bits" for s in bits)]]
    for n, k in product(items, hot):
        entropy_bits = k_hot_entropy_bits(n, k, weight_bits=weight_bits)
        dims = (f"{required_dim(entropy_bits, s):,}" for s in bits)
        lines.append([f"{n:,}", f"{k:,}", str(weight_bits), f"{entropy_bits:,.1f}", *dims])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))


if __name__ == "__main__":
    tyro.cli(main)
