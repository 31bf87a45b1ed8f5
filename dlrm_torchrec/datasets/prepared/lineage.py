"""Where a prepared folder stands in a chain of windows, of which each continues the vocabularies of the one before.

A window is what one folder holds: a day, an hour, or what a person likes. ``chain`` tells whether folders follow each
other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from dlrm_torchrec.checked_json import record


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Some values of each kind of change, those that were counted most often first."""

    added: tuple[str, ...] = ()
    returned: tuple[str, ...] = ()
    evicted_by_age: tuple[str, ...] = ()
    evicted_by_count: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class TableChanges:
    """What a window changed in the vocabulary of one table."""

    rows: int  # of the table
    values: int  # that have an id
    waiting: int  # values without an id whose counts are kept
    added: int  # values with an id that had none in the window before
    returned: int  # those of ``added`` that once lost an id, as far as the counts remember
    evicted_by_age: int  # values that lost their id since they were not seen for too many windows
    evicted_by_count: int  # values that lost their id to others that were counted more often
    examples: Examples = Examples()

    @property
    def line(self) -> str:
        """The changes in words, each kind with the value that was counted most often."""
        kinds = {
            "new": (self.added, self.examples.added),
            "of them back after eviction": (self.returned, self.examples.returned),
            "evicted by age": (self.evicted_by_age, self.examples.evicted_by_age),
            "evicted by count": (self.evicted_by_count, self.examples.evicted_by_count),
        }
        told = [
            f"{count:,} {what} ({', '.join(map(repr, some[:1]))}{', ...' if count > 1 else ''})"
            for what, (count, some) in kinds.items()
            if count
        ]
        return ", ".join([f"{self.values:,} values in {self.rows:,} rows", *told, f"{self.waiting:,} waiting"])


@dataclass(frozen=True, kw_only=True)
class TrainedFile:
    """A raw file whose rows are training rows of some window."""

    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """The place of a folder in its chain, and what later windows need to continue it."""

    window: int  # the first has number 1
    follows: str = ""  # fingerprint of the folder of the window before; empty for the first
    max_age: int = 0  # a value that was in none of so many last windows is forgotten; 0 means never
    capacities: Mapping[str, int]  # by table: most values with an id; 0 means that the table grows
    counts: Mapping[str, str]  # by table: SHA-256 of the file that keeps the counts of its values
    changes: Mapping[str, TableChanges]  # by table
    sources: tuple[TrainedFile, ...] = ()  # of all windows so far

    def lines(self) -> list[str]:
        """What the window changed, table by table, in words."""
        return [f"{table}: {changes.line}" for table, changes in self.changes.items()]

    def to_json(self) -> dict[str, Any]:
        """Plain dictionaries and lists, the inverse of ``from_json``."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Lineage:
        """The place that ``to_json`` wrote. Raises ValueError or TypeError for anything else."""
        changes = {name: record(TableChanges, each, f"changes of {name!r}") for name, each in data["changes"].items()}
        sources = tuple(record(TrainedFile, each, "a source of lineage") for each in data["sources"])
        return cls(**{**data, "changes": changes, "sources": sources})
