"""Configs of compositional tables: the logical table, which models see, and the physical table, which is stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property, partial

from torchrec.modules.embedding_configs import EmbeddingBagConfig

from dlrm_torchrec.embeddings.compositional.operations import Add, Concat, Mult, Operation, Passed
from dlrm_torchrec.embeddings.compositional.partitions.base import Partition
from dlrm_torchrec.embeddings.compositional.stacked_rows import InitialRows, StackedRows
from dlrm_torchrec.embeddings.compositional.table_group import Member, TableGroup


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
        if self.partition.shared_from and not isinstance(self.operation, (Add, Concat)):
            raise ValueError(
                f"operation of table {self.name!r} must be add or concat for several hashes into the same rows: got "
                f"{type(self.operation).__name__}; choose one of them"
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
    """The physical table of a compositional table; it repeats each feature of the logical table once per output."""

    logical: CompositionalEmbeddingBagConfig
    stack: StackedRows

    @cached_property
    def operation(self) -> Operation:
        return self.logical.operation

    @cached_property
    def _groups(self) -> dict[str, TableGroup]:
        return {}

    def group(self, feature: str) -> TableGroup:
        """The table as a group of its own, read by one of its features."""
        if feature not in self._groups:
            self._groups[feature] = TableGroup([Member(self.name, (feature,), self.stack)])
        return self._groups[feature]

    def pooling_factors(self, ids_per_bag: Mapping[str, float], batch_size: int) -> list[float]:
        """The rows that a bag of each physical feature looks up, for the planner: k per id plus its share of networks.

        Paths and tensor trains read networks once per batch and rank, for all features together.
        """
        num_bags = batch_size * len(self.logical.feature_names)
        outputs = self.operation.num_outputs(len(self.stack.sizes))
        factors = []
        for feature in self.logical.feature_names:
            rows = sum(
                size / num_bags if j and isinstance(self.operation, Passed) else ids_per_bag[feature]
                for j, size in enumerate(self.stack.sizes)
            )
            factors += [rows / outputs] * outputs
        return factors

    def initial_rows(self) -> list[InitialRows]:
        """Initial weights of the table, part by part."""
        return self.operation.initial_rows(self.stack, self.logical.embedding_dim)


def output_names(feature: str, outputs: int) -> list[str]:
    """Names of a feature's outputs."""
    return [f"{feature}#{number}" for number in range(outputs)]
