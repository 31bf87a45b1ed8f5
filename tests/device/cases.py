"""Tables and batches that together reach every branch of the operations."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any, NamedTuple

import torch
from torchrec.modules.embedding_configs import EmbeddingBagConfig, PoolingType
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrm_torchrec.embeddings.compositional.assigned import Assigned
from dlrm_torchrec.embeddings.compositional.operations import Add, Concat, FeatureGeneration, Mult, Operation, Path
from dlrm_torchrec.embeddings.compositional.partitions import (
    ChineseRemainder,
    Hash,
    MixedRadix,
    Naive,
    Partition,
    QuotientRemainder,
)
from dlrm_torchrec.embeddings.compositional.table_configs import CompositionalEmbeddingBagConfig

DIM, BATCH, IDS = 24, 4, 60
OPERATIONS = [Add(), Concat(), FeatureGeneration(), Mult(), Path(hidden=5), Path(hidden=0)]
PARTITIONS: list[Partition] = [
    QuotientRemainder(IDS, 2),  # few classes, so that a product sums by class where bags are long
    QuotientRemainder(IDS, 25),
    ChineseRemainder(IDS, (7, 9)),
    MixedRadix(IDS, (3, 4, 5)),
    Assigned.from_clusters(torch.arange(IDS) % 7),
    Hash(IDS, 9),
    Naive(IDS),
]


class Case(NamedTuple):
    operation: Operation
    pooling: PoolingType
    weights: str  # of ids: none, given, or learned
    longest: int  # ids of a bag: 1 means one in every bag, otherwise the most of bags that may be empty

    def __str__(self) -> str:
        return f"{self.operation}, {self.pooling.name}, {self.weights} weights, {self.longest} ids per bag"

    def configs(self) -> list[EmbeddingBagConfig]:
        """A compositional table for each partition; the first two are alike, and the last one has two features."""
        found: list[EmbeddingBagConfig] = []
        for number, partition in enumerate([PARTITIONS[0], *PARTITIONS]):
            names = [f"f{number}", "shared"] if number == len(PARTITIONS) else [f"f{number}"]
            options: dict[str, Any] = {"feature_names": names, "embedding_dim": DIM, "pooling": self.pooling}
            found.append(
                CompositionalEmbeddingBagConfig(
                    name=f"t{number}",
                    num_embeddings=partition.num_ids,
                    partition=partition,
                    operation=self.operation,
                    **options,
                )
            )
        found.append(EmbeddingBagConfig(name="plain", num_embeddings=IDS, embedding_dim=DIM, feature_names=["plain"]))
        return found

    def batch(self, seed: int = 0) -> KeyedJaggedTensor:
        """Bags of ids, on the host."""
        generator = torch.Generator().manual_seed(seed)
        keys = [name for config in self.configs() for name in config.feature_names]
        bags = (len(keys) * BATCH,)
        lengths = torch.ones(bags, dtype=torch.int64)
        if self.longest > 1:
            lengths = torch.randint(0, self.longest + 1, bags, generator=generator)
        count = int(lengths.sum())
        weights = None
        if self.weights != "no":
            weights = torch.rand(count, generator=generator).requires_grad_(self.weights == "learned")
        values = torch.randint(IDS, (count,), generator=generator)
        return KeyedJaggedTensor(keys=keys, values=values, lengths=lengths, weights=weights)


def cases() -> Iterator[Case]:
    for case in product(OPERATIONS, [PoolingType.SUM, PoolingType.MEAN], ["no", "given", "learned"], [1, 3, 40]):
        yield Case(*case)
