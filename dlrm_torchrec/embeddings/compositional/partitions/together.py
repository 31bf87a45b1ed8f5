"""Partitions of the same ids that are used together, such as clusters beside a hash that tells their members apart."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dlrm_torchrec.embeddings.compositional.partitions.base import Digit, Partition


@dataclass(frozen=True)
class Together(Partition):
    """The classes of all ``parts``, one after another; each part has rows of its own."""

    parts: tuple[Partition, ...]

    def __post_init__(self) -> None:
        if len({part.num_ids for part in self.parts}) != 1 or any(part.shared_from is not None for part in self.parts):
            raise ValueError(
                f"partitions that are used together must be of the same ids, in rows of their own: got {self.parts}; "
                "make their numbers of ids equal, and hash once each"
            )

    @property
    def num_ids(self) -> int:  # type: ignore[override]  # the other partitions have a field
        return self.parts[0].num_ids

    @property
    def classes(self) -> tuple[int, ...]:
        return tuple(count for part in self.parts for count in part.classes)

    @property
    def digits(self) -> tuple[Digit, ...]:
        return tuple(digit for part in self.parts for digit in part.digits)

    @property
    def codes(self) -> tuple[torch.Tensor | None, ...]:
        return tuple(codes for part in self.parts for codes in part.codes)

    def of(self, ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(classes for part in self.parts for classes in part.of(ids))
