"""Configs of compositional tables: the logical table, which models see, and the physical table, which is stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property

import torch
from torchrec.modules.embedding_configs import EmbeddingBagConfig, PoolingType

from dlrm_torchrec.embeddings.compositional.operations import Mult, Operation
from dlrm_torchrec.embeddings.compositional.partitions import Partition
from dlrm_torchrec.embeddings.compositional.stack import Bags, Block, LookUp, Stack


@dataclass(kw_only=True)
class CompositionalEmbeddingBagConfig(EmbeddingBagConfig):
    """A table of ``num_embeddings`` ids; the vector of an id is composed of the rows of its classes.

    Raises ValueError when the partition has another number of ids, or when the dim is no multiple of the number of
    partitions and the operation needs one. Also raises ValueError when initial weights are given: they depend on the
    operation.
    """

    partition: Partition
    operation: Operation = field(default_factory=Mult)

    def __post_init__(self) -> None:
        self.feature_names: list[str] = self.feature_names or [self.name]  # as TorchRec does
        k = len(self.partition.classes)
        if (self.init_fn, self.weight_init_min, self.weight_init_max) != (None, None, None):
            raise ValueError(
                f"initial weights of table {self.name!r} must come from its operation: got an init_fn or limits; "
                "leave them out"
            )
        if self.partition.num_ids != self.num_embeddings:
            raise ValueError(
                f"partition of table {self.name!r} must cover its {self.num_embeddings} ids: got a partition of "
                f"{self.partition.num_ids}; make the two equal"
            )
        if self.embedding_dim != self.operation.row_dim(self.embedding_dim, k) and self.embedding_dim % k:
            raise ValueError(
                f"dim of table {self.name!r} must be a multiple of {k}, its number of partitions, for concat: got "
                f"{self.embedding_dim}; change the dim, or choose mult"
            )

    def model_config(self) -> EmbeddingBagConfig:
        """The table as a model sees it: rows and dim of a plain table, and one feature for each key of the output."""
        return EmbeddingBagConfig(
            num_embeddings=self.num_embeddings,
            embedding_dim=self.embedding_dim,
            name=self.name,
            feature_names=self.keys(),
            pooling=self.pooling,
            data_type=self.data_type,
        )

    def keys(self) -> list[str]:
        """The keys of the output: one for each feature, or k for each feature with feature generation."""
        k = len(self.partition.classes)
        outputs = self.operation.num_outputs(k)
        if outputs * self.operation.row_dim(self.embedding_dim, k) == self.embedding_dim:
            return list(self.feature_names)
        return [name for feature in self.feature_names for name in output_names(feature, outputs)]

    def stacked(self) -> StackedEmbeddingBagConfig:
        """The physical table: the one that is stored, sharded, counted by the planner and named in a checkpoint."""
        k = len(self.partition.classes)
        stack = Stack(self.partition, self.operation.class_rows(self.embedding_dim, k))
        outputs = self.operation.num_outputs(k)
        inherited = {entry.name: getattr(self, entry.name) for entry in fields(EmbeddingBagConfig)}
        config = StackedEmbeddingBagConfig(
            **inherited
            | {
                "num_embeddings": stack.rows,
                "embedding_dim": self.operation.row_dim(self.embedding_dim, k),
                "feature_names": [name for feature in self.feature_names for name in output_names(feature, outputs)],
            },
            logical=self,
            stack=stack,
        )
        config.init_fn = config.fill
        return config


@dataclass(kw_only=True)
class StackedEmbeddingBagConfig(EmbeddingBagConfig):
    """The physical table of a compositional table; it repeats each feature of the logical table once per output."""

    logical: CompositionalEmbeddingBagConfig
    stack: Stack

    @cached_property
    def operation(self) -> Operation:
        return self.logical.operation

    def pooling_factors(self, ids_per_bag: Mapping[str, float], batch_size: int) -> list[float]:
        """The rows that a bag of each physical feature looks up, for the planner: k per id plus its share of networks.

        A path reads its networks once per batch and rank, for all features together.
        """
        num_bags = batch_size * len(self.logical.feature_names)
        outputs = self.operation.num_outputs(len(self.stack.sizes))
        factors = []
        for feature in self.logical.feature_names:
            rows = sum(
                ids_per_bag[feature] if class_rows == 1 else size / num_bags
                for class_rows, size in zip(self.stack.class_rows, self.stack.sizes, strict=True)
            )
            factors += [rows / outputs] * outputs
        return factors

    @torch.no_grad()
    def fill(self, weight: torch.Tensor) -> torch.Tensor:
        """Draw the initial weights in place; ``weight`` may be a shard of rows, or one or more shards of columns.

        A table is sharded by rows only if all its rows have the same distribution. TorchRec stacks the column shards
        of a rank below each other.
        """
        blocks = self.blocks()
        if len(blocks) == 1:
            return torch.nn.init.uniform_(weight, -blocks[0].limit, blocks[0].limit)
        for start in range(0, len(weight), self.num_embeddings):
            shard = weight[start : start + self.num_embeddings]
            for piece, block in zip(torch.split(shard, [block.rows for block in blocks]), blocks, strict=True):
                torch.nn.init.uniform_(piece, block.center - block.limit, block.center + block.limit)
        return weight

    def blocks(self) -> list[Block]:
        """Initial weights of the table, as consecutive blocks of rows."""
        return self.operation.blocks(self.stack, self.logical.embedding_dim)

    def pooled(self, bags: Bags, look_up: LookUp, features: Sequence[str] = ()) -> torch.Tensor:
        """Sums or means (bags, columns) over bags of ids; a mean divides by the number of ids, even with weights.

        The bags hold those of ``features`` one feature after another; by default all features of the table. Raises
        ValueError for an id outside of [0, number of ids).
        """
        self.check(bags, features)
        pooled = self.operation.pooled(self.stack, bags, look_up)
        if self.pooling is PoolingType.MEAN:
            pooled = pooled / bags.lengths.clamp(min=1)[:, None]
        return pooled

    def check(self, bags: Bags, features: Sequence[str] = ()) -> None:
        """Raises ValueError for an id outside of [0, number of ids); a GPU asserts it instead, to avoid waiting."""
        ids, num_ids = bags.values, self.stack.partition.num_ids
        if not len(ids):
            return
        low, high = ids.aminmax()
        if ids.is_cuda:
            torch._assert_async((low >= 0) & (high < num_ids))
        elif low < 0 or high >= num_ids:
            value = int(low if low < 0 else high)
            position = int((ids == value).nonzero()[0])
            bag = int(torch.searchsorted(bags.lengths.cumsum(0), position, right=True))
            features = features or self.logical.feature_names
            feature = features[bag * len(features) // len(bags.lengths)]
            raise ValueError(
                f"ids of feature {feature!r} must be in [0, {num_ids}), the ids of table {self.name!r}: got {value}; "
                "check how that column was prepared"
            )


def output_names(feature: str, outputs: int) -> list[str]:
    """Names of a feature's outputs."""
    return [f"{feature}#{number}" for number in range(outputs)]
