"""Modules that look up rows in FBGEMM's inference tables and that TorchScript can compile.

``values`` holds the ids of all features, one feature after another, and ``weights`` their weights, or is None.
``lengths`` (F, B) holds the number of ids of each feature in each sample.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from fbgemm_gpu.split_embedding_configs import SparseType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import BoundsCheckMode, EmbeddingLocation, PoolingMode
from fbgemm_gpu.split_table_batched_embeddings_ops_inference import IntNBitTableBatchedEmbeddingBagsCodegen
from torch import nn

from dlrm_torchrec.embeddings.compositional.partitions.base import Digit
from dlrm_torchrec.embeddings.compositional.partitions.digits import class_of, digit_tensor, has_hot, has_seed
from dlrm_torchrec.inference.config import TableType
from dlrm_torchrec.inference.tables.types import packed


class StoredTable(NamedTuple):
    """A table's weight (rows, dim), and the type in which its rows will be stored."""

    name: str
    weight: torch.Tensor
    kind: TableType


class Column(NamedTuple):
    """The rows of ``table`` for the ids of feature number ``source``: a row is ``first_row`` plus the id's digit."""

    table: StoredTable
    source: int
    digit: Digit = Digit()
    first_row: int = 0


def by_feature(values: torch.Tensor, lengths: torch.Tensor) -> list[torch.Tensor]:
    """The ids, or weights, of each feature."""
    counts: list[int] = lengths.sum(1).tolist()
    return list(torch.split(values, counts))


def selected(values: torch.Tensor, lengths: torch.Tensor, sources: list[int]) -> torch.Tensor:
    """The ids, or weights, of the features with these numbers, one after another."""
    pieces = by_feature(values, lengths)
    return torch.cat([pieces[source] for source in sources])


class RowLookup(nn.Module):
    """Looks up rows for columns of ids: sums of bags (B, dims of all columns), or one row per id (ids, dim)."""

    features: torch.Tensor
    digits: torch.Tensor
    first_rows: torch.Tensor

    def __init__(self, columns: Sequence[Column], mode: PoolingMode, num_features: int) -> None:
        super().__init__()
        by_name = {column.table.name: column.table for column in columns}
        names, tables = list(by_name), by_name.values()
        self.tables = IntNBitTableBatchedEmbeddingBagsCodegen(
            [(table.name, *table.weight.shape, SparseType(table.kind), EmbeddingLocation.HOST) for table in tables],
            feature_table_map=[names.index(column.table.name) for column in columns],
            device="cpu",
            pooling_mode=mode,
            output_dtype=SparseType.FP32,
            bounds_check_mode=BoundsCheckMode.NONE,  # the served model checks every id itself
            row_alignment=1,
            indices_dtype=torch.int64,
        )
        self.tables.initialize_weights()
        for table, (numbers, scales) in zip(tables, self.tables.split_embedding_weights(), strict=True):
            new_numbers, new_scales = packed(table.weight, table.kind)
            numbers.copy_(new_numbers)
            if new_scales is not None:
                scales.copy_(new_scales)
        self.sources = [column.source for column in columns]
        self.all_features = self.sources == list(range(num_features))
        self.ids_are_rows = all(column.digit == Digit() and column.first_row == 0 for column in columns)
        self.register_buffer("features", torch.tensor(self.sources))
        digits = [column.digit for column in columns]
        self.hot, self.seeded = has_hot(digits), has_seed(digits)
        self.register_buffer("digits", digit_tensor(digits))
        self.register_buffer("first_rows", torch.tensor([column.first_row for column in columns]))

    def forward(self, values: torch.Tensor, lengths: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
        if not self.all_features:
            values = selected(values, lengths, self.sources)
            if weights is not None:
                weights = selected(weights, lengths, self.sources)
            lengths = lengths[self.features]
        if not self.ids_are_rows:
            column = torch.repeat_interleave(lengths.sum(1))
            classes = class_of(values, self.digits[column], hot=self.hot, seeded=self.seeded)
            values = classes + self.first_rows[column]
        offsets = torch.ops.fbgemm.asynchronous_complete_cumsum(lengths.flatten())
        rows: torch.Tensor = self.tables(values, offsets, weights)
        return rows


class Sums(nn.Module):
    """One vector (B, dim) per key: the sums of its columns' bags, concatenated or added."""

    def __init__(self, keys: Sequence[tuple[Sequence[Column], bool]], num_features: int, *, together: bool) -> None:
        """``keys`` holds each key's columns and whether to add them; ``together`` returns all keys as one tensor."""
        super().__init__()
        self.lookup = RowLookup([column for columns, _ in keys for column in columns], PoolingMode.SUM, num_features)
        self.widths = [sum(column.table.weight.size(1) for column in columns) for columns, _ in keys]
        self.terms = [len(columns) if adds else 1 for columns, adds in keys]
        self.together = together

    def forward(self, values: torch.Tensor, lengths: torch.Tensor, weights: torch.Tensor | None) -> list[torch.Tensor]:
        pooled = self.lookup(values, lengths, weights)
        if self.together:
            return [pooled]
        sums = list(torch.split(pooled, self.widths, dim=1))
        for key, terms in enumerate(self.terms):
            if terms > 1:
                sums[key] = sums[key].reshape(pooled.size(0), terms, -1).sum(1)
        return sums
