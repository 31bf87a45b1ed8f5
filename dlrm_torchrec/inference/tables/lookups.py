"""Modules that look up rows in FBGEMM's inference tables and that TorchScript can compile.

``values`` holds the ids of all features, one feature after another, and ``weights`` their weights, or is None.
``lengths`` (F, B) holds the number of ids of each feature in each sample.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from fbgemm_gpu.split_embedding_configs import SparseType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import BoundsCheckMode, EmbeddingLocation, PoolingMode
from fbgemm_gpu.split_table_batched_embeddings_ops_inference import IntNBitTableBatchedEmbeddingBagsCodegen
from torch import nn

from dlrm_torchrec.embeddings.compositional.partitions.base import Digit
from dlrm_torchrec.embeddings.compositional.partitions.digits import class_of, digit_tensor, has_hot, has_seed
from dlrm_torchrec.embeddings.compositional.partitions.listed import ListedCodes, listed_or
from dlrm_torchrec.embeddings.compositional.partitions.renumbered import renumbered
from dlrm_torchrec.inference.config import TableType
from dlrm_torchrec.inference.tables.types import packed

ROW_ALIGNMENT = 1  # bytes


class StoredTable(NamedTuple):
    """A table's weight (rows, dim), and the type in which its rows will be stored."""

    name: str
    weight: torch.Tensor
    kind: TableType


class Column(NamedTuple):
    """The rows of ``table`` for the ids of feature number ``source``: a row is ``first_row`` plus the id's class.

    The class is a digit of the id, unless ``codes`` list it for every id.
    """

    table: StoredTable
    source: int
    digit: Digit = Digit()
    codes: torch.Tensor | None = None
    first_row: int = 0
    first_ids: torch.Tensor | None = None  # by whose numbers digits and codes go

    @property
    def reads_ids(self) -> bool:
        """Whether ids are the numbers of rows."""
        arithmetic = self.codes is None and self.first_ids is None
        return arithmetic and self.digit == Digit() and self.first_row == 0


def by_feature(values: torch.Tensor, lengths: torch.Tensor) -> list[torch.Tensor]:
    """The ids, or weights, of each feature."""
    counts: list[int] = lengths.sum(1).tolist()
    return list(torch.split(values, counts))


def selected(values: torch.Tensor, lengths: torch.Tensor, sources: list[int]) -> torch.Tensor:
    """The ids, or weights, of the features with these numbers, one after another."""
    pieces = by_feature(values, lengths)
    return torch.cat([pieces[source] for source in sources])


class Classes(nn.Module):
    """The class (n,) of each id (n,) by the number (n,) of its column."""

    digits: torch.Tensor
    begins: torch.Tensor
    short_codes: torch.Tensor
    long_codes: torch.Tensor
    first_ids: torch.Tensor
    listed: list[tuple[int, int, int]]  # column, and where its first ids begin and end

    def __init__(self, columns: Sequence[Column]) -> None:
        super().__init__()
        digits, listed = [column.digit for column in columns], ListedCodes([column.codes for column in columns])
        self.hot, self.seeded = has_hot(digits), has_seed(digits)
        self.register_buffer("digits", digit_tensor(digits))
        self.register_buffer("begins", torch.tensor([listed.begin(column.codes) for column in columns]))
        self.register_buffer("short_codes", torch.from_numpy(listed.short))
        self.register_buffer("long_codes", torch.from_numpy(listed.long))
        first = {column.table.name: column.first_ids for column in columns if column.first_ids is not None}
        starts = dict(zip(first, accumulate(map(len, first.values()), initial=0), strict=False))
        self.listed = [
            (number, starts[column.table.name], starts[column.table.name] + len(column.first_ids))
            for number, column in enumerate(columns)
            if column.first_ids is not None
        ]
        self.register_buffer("first_ids", torch.cat([torch.empty(0, dtype=torch.int64), *first.values()]))

    def forward(self, ids: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
        for number, start, end in self.listed:
            ids = torch.where(column == number, renumbered(ids, self.first_ids[start:end]), ids)
        classes = class_of(ids, self.digits[column], hot=self.hot, seeded=self.seeded)
        return listed_or(classes, ids, begin=self.begins[column], codes=[self.short_codes, self.long_codes])


class RowLookup(nn.Module):
    """Looks up rows for columns of ids: sums of bags (B, dims of all columns), or one row per id (ids, dim).

    It calls the operator of FBGEMM's module rather than the module, whose branches for caches and pruning make programs
    slow to load.
    """

    features: torch.Tensor
    first_rows: torch.Tensor
    weights: torch.Tensor
    starts: torch.Tensor
    table_of: torch.Tensor
    types: torch.Tensor
    ends: torch.Tensor
    nowhere: torch.Tensor
    placements: torch.Tensor

    def __init__(self, columns: Sequence[Column], mode: PoolingMode, num_features: int) -> None:
        super().__init__()
        by_name = {column.table.name: column.table for column in columns}
        names, tables = list(by_name), by_name.values()
        table_of = [names.index(column.table.name) for column in columns]
        filled = _filled(list(tables), table_of, mode)
        self.names, self.num_rows, self.row_bytes = names, [len(table.weight) for table in tables], list[int]()
        for numbers, scales in filled.split_embedding_weights():
            self.row_bytes.append(numbers.size(1) + (0 if scales is None else scales.size(1)))
        self.register_buffer("weights", filled.weights_host)  # the rows of all tables
        self.register_buffer("starts", filled.weights_offsets[[table_of.index(i) for i in range(len(names))]])
        self.register_buffer("table_of", torch.tensor(table_of))
        self.register_buffer("types", filled.weights_tys)
        self.register_buffer("ends", filled.D_offsets)
        self.register_buffer("nowhere", filled.weights_uvm)
        self.register_buffer("placements", filled.weights_placements)
        self.total_dim, self.mode = filled.total_D, int(mode)
        self.output_type, self.row_alignment = SparseType.FP32.as_int(), ROW_ALIGNMENT
        self.widest2, self.widest4, self.widest8 = filled.max_int2_D, filled.max_int4_D, filled.max_int8_D
        self.widest16, self.widest32 = filled.max_float16_D, filled.max_float32_D
        self.sources = [column.source for column in columns]
        self.all_features = self.sources == list(range(num_features))
        self.ids_are_rows = all(column.reads_ids for column in columns)
        self.register_buffer("features", torch.tensor(self.sources))
        self.classes = Classes(columns)
        self.register_buffer("first_rows", torch.tensor([column.first_row for column in columns]))

    def forward(self, values: torch.Tensor, lengths: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
        if not self.all_features:
            values = selected(values, lengths, self.sources)
            if weights is not None:
                weights = selected(weights, lengths, self.sources)
            lengths = lengths[self.features]
        if not self.ids_are_rows:
            column = torch.repeat_interleave(lengths.sum(1))
            values = self.classes(values, column) + self.first_rows[column]
        offsets = torch.ops.fbgemm.asynchronous_complete_cumsum(lengths.flatten())
        rows: torch.Tensor = torch.ops.fbgemm.int_nbit_split_embedding_codegen_lookup_function(
            dev_weights=self.weights,
            uvm_weights=self.nowhere,
            weights_placements=self.placements,
            weights_offsets=self.starts[self.table_of],
            weights_tys=self.types,
            D_offsets=self.ends,
            total_D=self.total_dim,
            max_int2_D=self.widest2,
            max_int4_D=self.widest4,
            max_int8_D=self.widest8,
            max_float16_D=self.widest16,
            max_float32_D=self.widest32,
            indices=values,
            offsets=offsets,
            pooling_mode=self.mode,
            indice_weights=weights,
            output_dtype=self.output_type,
            row_alignment=self.row_alignment,
        )
        return rows


def _filled(
    tables: Sequence[StoredTable], table_of: list[int], mode: PoolingMode
) -> IntNBitTableBatchedEmbeddingBagsCodegen:
    """FBGEMM's tables with the rows of ``tables``, for columns that look up the tables of these numbers."""
    filled = IntNBitTableBatchedEmbeddingBagsCodegen(
        [(table.name, *table.weight.shape, SparseType(table.kind), EmbeddingLocation.HOST) for table in tables],
        feature_table_map=table_of,
        device="cpu",
        pooling_mode=mode,
        output_dtype=SparseType.FP32,
        bounds_check_mode=BoundsCheckMode.NONE,  # the served model checks every id itself
        row_alignment=ROW_ALIGNMENT,
        indices_dtype=torch.int64,
    )
    filled.initialize_weights()
    for table, (numbers, scales) in zip(tables, filled.split_embedding_weights(), strict=True):
        new_numbers, new_scales = packed(table.weight, table.kind)
        numbers.copy_(new_numbers)
        if new_scales is not None:
            scales.copy_(new_scales)
    return filled


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
