"""The embedding tables of a data set as a recipe's config wants them stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import torch
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from dlrm_torchrec.embeddings.collection import CompositionalEmbeddingBagCollection
from dlrm_torchrec.embeddings.config import CompositionalEmbeddingBagConfig
from dlrm_torchrec.embeddings.mixed_dimensions import MixedDimensionEmbeddingBagCollection, power_rule_dims
from dlrm_torchrec.embeddings.operations import Add, Concat, FeatureGeneration, Mult, Operation, Path
from dlrm_torchrec.embeddings.partition_sizes import (
    chinese_remainder_for_collisions,
    hash_for_collisions,
    mixed_radix_for_collisions,
    optimal_chinese_remainder,
    optimal_mixed_radix,
    quotient_remainder_for_collisions,
    quotient_remainder_for_rows,
)
from dlrm_torchrec.embeddings.partitions import Partition
from dlrm_torchrec.schema import Table

Kind = Literal["plain", "hash", "quotient_remainder", "mixed_radix", "chinese_remainder", "mixed_dimension"]
OperationName = Literal["concat", "add", "mult", "path", "feature_generation"]
Tables: TypeAlias = EmbeddingBagCollection | MixedDimensionEmbeddingBagCollection


@dataclass(frozen=True, kw_only=True)
class TablesConfig:
    """How tables are stored: plain, composed of smaller ones (arXiv 1909.02107), or of mixed dims (1909.11810)."""

    kind: Kind = "plain"
    operation: OperationName = "mult"  # what combines the rows of an id
    collisions: int = 4  # ids per row of the largest partition; 0: what gives the fewest rows in all
    max_rows: int = 0  # of a quotient_remainder table, with the fewest collisions, in place of 'collisions'; 0: any
    partitions: int = 2  # of mixed_radix and chinese_remainder
    threshold: int = 200  # a table of at most so many rows stays plain
    hidden: int = 64  # units of a path's networks; 0: linear
    alpha: float = 0.3  # of mixed_dimension: the power of the rows by which the dim falls
    budget: int = 0  # of mixed_dimension: most elements of the tables above the threshold; 0: what alpha gives

    def __post_init__(self) -> None:
        for name, value, choices in (
            ("kind", self.kind, get_args(Kind)),
            ("operation", self.operation, get_args(OperationName)),
        ):
            if value not in choices:
                raise ValueError(f"{name} of tables must be one of {choices}: got {value!r}; name one of them")
        if self.collisions < 0 or (self.kind == "hash" and self.collisions == 0):
            raise ValueError(
                f"collisions of {self.kind} tables must be at least {int(self.kind == 'hash')}: got "
                f"{self.collisions}; try 4"
            )
        if self.max_rows < 0 or (self.max_rows and self.kind != "quotient_remainder"):
            raise ValueError(
                f"max_rows must be 0 or more, and is for quotient_remainder tables: got {self.max_rows} for "
                f"{self.kind}; use collisions"
            )
        if self.budget < 0 or (self.budget and self.kind != "mixed_dimension"):
            raise ValueError(
                f"budget must be 0 or more, and is for mixed_dimension tables: got {self.budget} for {self.kind}; "
                "use collisions or max_rows"
            )

    def partition(self, rows: int) -> Partition:
        """The partition of a table of ``rows`` ids."""
        if self.kind == "hash":
            return hash_for_collisions(rows, self.collisions)
        if self.kind == "chinese_remainder":
            if self.collisions:
                return chinese_remainder_for_collisions(rows, self.collisions, self.partitions)
            return optimal_chinese_remainder(rows, self.partitions)
        if self.kind == "mixed_radix":
            if self.collisions:
                return mixed_radix_for_collisions(rows, self.collisions, self.partitions)
            return optimal_mixed_radix(rows, self.partitions)
        if self.max_rows:
            return quotient_remainder_for_rows(rows, self.max_rows)
        return quotient_remainder_for_collisions(rows, self.collisions or optimal_mixed_radix(rows, 2).radices[1])

    def combine(self) -> Operation:
        """The operation that makes one vector of an id's rows; a hashed id has only one."""
        if self.kind == "hash":
            return Add()
        operations: dict[OperationName, Operation] = {
            "concat": Concat(),
            "add": Add(),
            "mult": Mult(),
            "path": Path(hidden=self.hidden),
            "feature_generation": FeatureGeneration(),
        }
        return operations[self.operation]


def build_tables(
    tables: Sequence[Table], config: TablesConfig | None = None, dense_device: torch.device | None = None
) -> Tables:
    """Sum-pooled tables that hold no memory until they are sharded; plain ones without ``config``.

    ``dense_device`` is where the projections of mixed dims lie, which are not sharded.
    """
    config, meta = config or TablesConfig(), torch.device("meta")
    configs = [
        EmbeddingBagConfig(
            name=table.name,
            num_embeddings=table.rows,
            embedding_dim=table.dim,
            feature_names=list(table.features),
        )
        for table in tables
    ]
    large = [plain for plain in configs if plain.num_embeddings > config.threshold]
    if config.kind == "plain" or not large:
        return EmbeddingBagCollection(device=meta, tables=configs)
    if config.kind == "mixed_dimension":
        common = configs[0].embedding_dim
        rows = [plain.num_embeddings for plain in large]
        dims = power_rule_dims(rows, common, config.alpha, budget=config.budget or None)
        for plain, dim in zip(large, dims, strict=True):
            plain.embedding_dim = dim
        return MixedDimensionEmbeddingBagCollection(configs, common, device=meta, dense_device=dense_device)
    return CompositionalEmbeddingBagCollection([_composed(plain, config) for plain in configs], device=meta)


def _composed(plain: EmbeddingBagConfig, config: TablesConfig) -> EmbeddingBagConfig:
    if plain.num_embeddings <= config.threshold:
        return plain
    return CompositionalEmbeddingBagConfig(
        name=plain.name,
        num_embeddings=plain.num_embeddings,
        embedding_dim=plain.embedding_dim,
        feature_names=plain.feature_names,
        partition=config.partition(plain.num_embeddings),
        operation=config.combine(),
    )


def physical_configs(tables: Tables) -> list[EmbeddingBagConfig]:
    """The tables as they are stored, sharded and counted."""
    stored = tables.tables if isinstance(tables, MixedDimensionEmbeddingBagCollection) else tables
    if isinstance(stored, CompositionalEmbeddingBagCollection):
        return stored.physical_configs()
    configs: list[EmbeddingBagConfig] = stored.embedding_bag_configs()
    return configs
