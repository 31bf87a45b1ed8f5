"""Configs of compositional tables: the logical one that models see, and the physical one that is stored."""

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
    """A table of ``num_embeddings`` ids, of which each vector is composed of the rows of its classes.

    Raises ValueError where the partition is of another number of ids, or the operation does not fit it; also where
    initial weights are given, which depend on the operation.
    """

    partition: Partition
    operation: Operation = field(default_factory=Mult)

    def __post_init__(self) -> None:
        self.feature_names: list[str] = self.feature_names or [self.name]  # as TorchRec does
        k = len(self.partition.classes)
        if (self.init_fn, self.weight_init_min, self.weight_init_max) != (None, None, None):
            raise ValueError(
                f"initial weights of table {self.name!r} must be left to its operation: got an init_fn or limits; "
                "leave them out"
            )
        if self.partition.num_ids != self.num_embeddings:
            raise ValueError(
                f"partition of table {self.name!r} must be of its {self.num_embeddings} ids: got one of "
                f"{self.partition.num_ids}; make the two equal"
            )
        if self.embedding_dim != self.operation.row_dim(self.embedding_dim, k) and self.embedding_dim % k:
            raise ValueError(
                f"dim of table {self.name!r} must be a multiple of its {k} partitions for concat: got "
                f"{self.embedding_dim}; change the dim, or choose mult"
            )

    def model_config(self) -> EmbeddingBagConfig:
        """The table as a model sees it: rows and dim of a plain one, and every key that it gives as a feature."""
        return EmbeddingBagConfig(
            num_embeddings=self.num_embeddings,
            embedding_dim=self.embedding_dim,
            name=self.name,
            feature_names=self.keys(),
            pooling=self.pooling,
            data_type=self.data_type,
        )

    def keys(self) -> list[str]:
        """What a model gets of each feature: one vector, or k with feature generation."""
        k = len(self.partition.classes)
        outputs = self.operation.num_outputs(k)
        if outputs * self.operation.row_dim(self.embedding_dim, k) == self.embedding_dim:
            return list(self.feature_names)
        return [name for feature in self.feature_names for name in output_names(feature, outputs)]

    def stacked(self) -> StackedEmbeddingBagConfig:
        """The physical table: what is stored, sharded, counted by the planner and named in a checkpoint."""
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
    """The physical table of a compositional one; its features are the logical one's, once per output."""

    logical: CompositionalEmbeddingBagConfig
    stack: Stack

    @cached_property
    def operation(self) -> Operation:
        return self.logical.operation

    def pooling_factors(self, ids_per_bag: Mapping[str, float], batch_size: int) -> list[float]:
        """Rows that a bag of each physical feature looks up, for the planner: k per id, and a share of the networks.

        A path reads its networks once per batch of a rank, for all features together.
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
        """Draw the initial weights in place; ``weight`` may be a shard of rows, or of columns, or several of columns.

        Only tables whose rows are all drawn alike are ever sharded by rows; TorchRec stacks a rank's column shards.
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
        """Initial weights of each run of rows."""
        return self.operation.blocks(self.stack, self.logical.embedding_dim)

    def pooled(self, bags: Bags, look_up: LookUp, features: Sequence[str] = ()) -> torch.Tensor:
        """Sums or means (bags, columns) over bags of ids; a mean divides by the number of ids, also with weights.

        The bags are of ``features``, of all that the table has by default, one after another. Raises ValueError for
        an id outside of [0, number of ids).
        """
        self.check(bags, features)
        pooled = self.operation.pooled(self.stack, bags, look_up)
        if self.pooling is PoolingType.MEAN:
            pooled = pooled / bags.lengths.clamp(min=1)[:, None]
        return pooled

    def check(self, bags: Bags, features: Sequence[str] = ()) -> None:
        """ValueError for an id outside of [0, number of ids); on a GPU the device asserts, without a wait for it."""
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
                "look at the preparation of that column"
            )


def output_names(feature: str, outputs: int) -> list[str]:
    """Names of a feature's outputs."""
    return [f"{feature}#{number}" for number in range(outputs)]
