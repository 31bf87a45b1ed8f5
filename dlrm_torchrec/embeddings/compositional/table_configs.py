"""Configs of compositional tables: the logical one that models see, and the physical one that is stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property, partial

from torchrec.modules.embedding_configs import EmbeddingBagConfig

from dlrm_torchrec.embeddings.compositional.operations import Mult, Operation
from dlrm_torchrec.embeddings.compositional.partitions import Partition
from dlrm_torchrec.embeddings.compositional.stacked_rows import InitialRows, StackedRows


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
        stack = StackedRows(self.partition, self.operation.class_rows(self.embedding_dim, k))
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
        config.init_fn = partial(self.operation.draw, stack, self.embedding_dim)
        return config


@dataclass(kw_only=True)
class StackedEmbeddingBagConfig(EmbeddingBagConfig):
    """The physical table of a compositional one; its features are the logical one's, once per output."""

    logical: CompositionalEmbeddingBagConfig
    stack: StackedRows

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

    def initial_rows(self) -> list[InitialRows]:
        """Initial weights of each run of rows."""
        return self.operation.initial_rows(self.stack, self.logical.embedding_dim)


def output_names(feature: str, outputs: int) -> list[str]:
    """Names of a feature's outputs."""
    return [f"{feature}#{number}" for number in range(outputs)]
