"""Configs of compositional tables: the logical table, which models see, and the physical table, which is stored."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property, partial
from typing import Any

from torchrec.modules.embedding_configs import BaseEmbeddingConfig, EmbeddingBagConfig, EmbeddingConfig

from dlrm_torchrec.embeddings.compositional.operations import Add, Concat, Mult, Operation, Passed, Summed
from dlrm_torchrec.embeddings.compositional.partitions.base import Partition
from dlrm_torchrec.embeddings.compositional.stacked_rows import InitialRows, StackedRows
from dlrm_torchrec.embeddings.compositional.table_group import Member, TableGroup


@dataclass(kw_only=True)
class CompositionalTable(BaseEmbeddingConfig):
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

    @property
    def gives_one_vector(self) -> bool:
        """Whether an id has one vector of the table's dim, and not k of them."""
        k = len(self.partition.classes)
        return self.operation.num_outputs(k) * self.operation.row_dim(self.embedding_dim, k) == int(self.embedding_dim)

    def _physical(self, kind: type[BaseEmbeddingConfig]) -> dict[str, Any]:
        """What the physical table is made of; it inherits all fields of ``kind`` that are not its own."""
        k = len(self.partition.classes)
        stack = StackedRows(self.partition, self.operation.class_rows(self.embedding_dim, k))
        return {entry.name: getattr(self, entry.name) for entry in fields(kind)} | {
            "num_embeddings": stack.rows,
            "embedding_dim": self.operation.row_dim(self.embedding_dim, k),
            "init_fn": partial(self.operation.draw, stack, self.embedding_dim),
            "logical": self,
            "stack": stack,
        }


@dataclass(kw_only=True)
class CompositionalEmbeddingBagConfig(CompositionalTable, EmbeddingBagConfig):
    """A compositional table whose vectors are pooled."""

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
        if self.gives_one_vector:
            return list(self.feature_names)
        outputs = self.operation.num_outputs(len(self.partition.classes))
        return [name for feature in self.feature_names for name in output_names(feature, outputs)]

    def stacked(self) -> StackedEmbeddingBagConfig:
        """The physical table: the one that is stored, sharded, counted by the planner and named in a checkpoint."""
        outputs = self.operation.num_outputs(len(self.partition.classes))
        names = [name for feature in self.feature_names for name in output_names(feature, outputs)]
        return StackedEmbeddingBagConfig(**self._physical(EmbeddingBagConfig) | {"feature_names": names})


@dataclass(kw_only=True)
class CompositionalEmbeddingConfig(CompositionalTable, EmbeddingConfig):
    """A compositional table that gives a vector for every id; raises ValueError for feature generation, too."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.gives_one_vector:
            raise ValueError(
                f"operation of table {self.name!r} must give one vector for each id of a sequence: got "
                f"{type(self.operation).__name__}, which gives {len(self.partition.classes)}; choose concat"
            )

    def model_config(self) -> EmbeddingConfig:
        """The table as a model sees it: a plain one."""
        return EmbeddingConfig(
            num_embeddings=self.num_embeddings,
            embedding_dim=self.embedding_dim,
            name=self.name,
            feature_names=list(self.feature_names),
            data_type=self.data_type,
        )

    def stacked(self) -> StackedEmbeddingConfig:
        """The physical table, as of pooled vectors."""
        return StackedEmbeddingConfig(**self._physical(EmbeddingConfig))


@dataclass(kw_only=True)
class StackedTable(BaseEmbeddingConfig):
    """The physical table of a compositional table."""

    logical: CompositionalTable
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

    def initial_rows(self) -> list[InitialRows]:
        """Initial weights of the table, part by part."""
        return self.operation.initial_rows(self.stack, self.logical.embedding_dim)

    def rows_per_bag(self, ids_per_bag: Mapping[str, float], batch_size: int) -> list[float]:
        """The rows that a bag of each logical feature looks up: k per id plus its share of networks.

        Paths and tensor trains read networks once per batch and rank, for all features together.
        """
        num_bags = batch_size * len(self.logical.feature_names)
        return [
            sum(
                size / num_bags if j and isinstance(self.operation, Passed) else ids_per_bag[feature]
                for j, size in enumerate(self.stack.sizes)
            )
            for feature in self.logical.feature_names
        ]

    @property
    @abstractmethod
    def sums_rows(self) -> bool:
        """Whether TorchRec's kernels do all the work, once ids were turned into rows; row-wise types send these."""

    @abstractmethod
    def pooling_factors(self, ids_per_bag: Mapping[str, float], batch_size: int) -> list[float]:
        """The ids of a bag of each physical feature, for a planner that knows only plain tables."""


@dataclass(kw_only=True)
class StackedEmbeddingBagConfig(StackedTable, EmbeddingBagConfig):
    """The physical table of pooled vectors; it repeats each feature of the logical table once per output."""

    @property
    def sums_rows(self) -> bool:
        return isinstance(self.operation, Summed)

    def pooling_factors(self, ids_per_bag: Mapping[str, float], batch_size: int) -> list[float]:
        outputs = self.operation.num_outputs(len(self.stack.sizes))
        return [rows / outputs for rows in self.rows_per_bag(ids_per_bag, batch_size) for _ in range(outputs)]


@dataclass(kw_only=True)
class StackedEmbeddingConfig(StackedTable, EmbeddingConfig):
    """The physical table of a vector for every id."""

    @property
    def sums_rows(self) -> bool:
        return False

    def pooling_factors(self, ids_per_bag: Mapping[str, float], batch_size: int) -> list[float]:  # noqa: ARG002 (as above)
        rows_per_vector = self.logical.embedding_dim // self.embedding_dim  # several with concat
        return [rows_per_vector * ids_per_bag[feature] for feature in self.feature_names]


def output_names(feature: str, outputs: int) -> list[str]:
    """Names of a feature's outputs."""
    return [f"{feature}#{number}" for number in range(outputs)]
