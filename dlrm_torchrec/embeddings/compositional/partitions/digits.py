"""Classes of ids from the numbers of digits, on any device, also in TorchScript, which served tables need."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from dlrm_torchrec.embeddings.compositional.partitions.base import Digit
from dlrm_torchrec.embeddings.compositional.partitions.hashes import mixed


def class_of(ids: torch.Tensor, digits: torch.Tensor, *, hot: bool, seeded: bool) -> torch.Tensor:
    """The class (n,) of each id (n,) by its own ``Digit``, a row of ``digits`` (n, 5).

    ``hot`` and ``seeded`` say whether any digit has hot ids, or a seed; the operators for them are left out otherwise.
    """
    divisor, modulus, first_cold, base, seed = digits.unbind(1)
    y = ids
    if hot:
        y = ids - first_cold
    if seeded:
        y = torch.where(seed == 0, y, mixed(y, seed))
    classes = y // divisor % modulus
    if hot:
        classes = torch.where(ids < first_cold, torch.minimum(ids, base - 1), base + classes)
    return classes


def has_hot(digits: Iterable[Digit]) -> bool:
    """Whether any of the digits has hot ids."""
    return any(digit.hot > 0 for digit in digits)


def has_seed(digits: Iterable[Digit]) -> bool:
    """Whether any of the digits mixes bits."""
    return any(digit.seed != 0 for digit in digits)
