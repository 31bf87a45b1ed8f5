"""Several hashes of an id into one table: hash embeddings (arXiv 1709.03933), and shared blocks (ROBE, 2108.02191).

Two ids that collide in one hash rarely collide in all. Added, the k rows of an id are its hash embedding, without the
weights per id of that paper. Concatenated, they are ROBE with blocks that do not overlap.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dlrm_torchrec.embeddings.compositional.partitions.base import Digit, Partition, check_count
from dlrm_torchrec.embeddings.mixing import mix


@dataclass(frozen=True)
class Hashes(Partition):
    """``num_hashes`` independent hashes of the id into the same ``num_classes`` rows."""

    num_ids: int
    num_classes: int
    num_hashes: int

    def __post_init__(self) -> None:
        for name in ("num_ids", "num_classes", "num_hashes"):
            check_count(name, getattr(self, name))

    @property
    def shared_from(self) -> tuple[int, ...]:
        return (0,) * self.num_hashes

    @property
    def classes(self) -> tuple[int, ...]:
        return (self.num_classes,) * self.num_hashes

    @property
    def digits(self) -> tuple[Digit, ...]:
        return tuple(Digit(modulus=self.num_classes, seed=seed) for seed in range(1, self.num_hashes + 1))

    def of(self, ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
        seeds = range(1, self.num_hashes + 1)
        return tuple(mixed(ids.long(), torch.full_like(ids, seed).long()) % self.num_classes for seed in seeds)


def mixed(ids: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
    """Numbers of ``MIXED_BITS`` bits that look random, of the ids by seeds: SplitMix64 (Steele et al., OOPSLA 2014)."""
    # numbers, because TorchScript knows no globals: GOLDEN in int64, 64 - MIXED_BITS, and a mask of MIXED_BITS
    return mix(ids + seeds * -0x61C8864680B583EB) >> 13 & 0x7FFFFFFFFFFFF
