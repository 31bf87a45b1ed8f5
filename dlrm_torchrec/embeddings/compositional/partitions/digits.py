"""Classes of ids from the numbers of digits, on any device, also in TorchScript, which served tables need."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

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


def digit_tensor(digits: Sequence[Digit]) -> torch.Tensor:
    """The numbers of the digits, (n, 5) int64."""
    return torch.tensor([tuple(digit) for digit in digits], dtype=torch.int64).view(-1, len(Digit()))


def has_hot(digits: Iterable[Digit]) -> bool:
    """Whether any of the digits has hot ids."""
    return any(digit.hot > 0 for digit in digits)


def has_seed(digits: Iterable[Digit]) -> bool:
    """Whether any of the digits mixes bits."""
    return any(digit.seed != 0 for digit in digits)
