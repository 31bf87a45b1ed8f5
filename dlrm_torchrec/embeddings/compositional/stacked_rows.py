"""Partitions that are stacked in one physical table: where the rows of each begin, and their initial weights."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from dlrm_torchrec.embeddings.compositional.partitions.base import Partition
from dlrm_torchrec.embeddings.compositional.row_map import ClassRow
from dlrm_torchrec.schema import MANAGED_IDS


class InitialRows(NamedTuple):
    """Initial weights of ``rows`` consecutive rows: U(center - limit, center + limit)."""

    rows: int
    center: float
    limit: float

    @classmethod
    def plain(cls, rows: int) -> InitialRows:
        """Initial weights of a plain table of ``rows`` rows, as in DLRM."""
        return cls(rows, center=0.0, limit=rows**-0.5)


@dataclass(frozen=True)
class StackedRows:
    """k partitions in one table; partition j begins at row ``first_rows[j]`` and has ``class_rows[j]`` rows a class.

    Partitions that share rows begin where they say.
    """

    partition: Partition
    class_rows: tuple[int, ...]

    @cached_property
    def sizes(self) -> list[int]:
        return [classes * rows for classes, rows in zip(self.partition.classes, self.class_rows, strict=True)]

    @cached_property
    def rows(self) -> int:
        return max(first + size for first, size in zip(self.first_rows, self.sizes, strict=True))

    @property
    def expected_ids(self) -> int:
        """The ids to expect, by which initial weights go: all of them, or if they have no end, one for each row."""
        return self.rows if self.partition.num_ids == MANAGED_IDS else self.partition.num_ids

    @cached_property
    def first_rows(self) -> list[int]:
        return list(self.partition.shared_from or [sum(self.sizes[:j]) for j in range(len(self.sizes))])

    def class_rows_of(self, first_row: int = 0) -> tuple[ClassRow, ...]:
        """The first row of an id's class in each of the k partitions, if the table begins at ``first_row``."""
        return tuple(
            ClassRow(self.partition, number, first_row + first) for number, first in enumerate(self.first_rows)
        )
