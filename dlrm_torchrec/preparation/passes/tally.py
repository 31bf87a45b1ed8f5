"""The counts in a preparation's report; each line of each source is counted exactly once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa

from dlrm_torchrec.preparation.readers.rows import Rows
from dlrm_torchrec.preparation.vocabularies.vocabulary import UNSEEN
from dlrm_torchrec.schema import DatasetSpec


@dataclass
class Tally:
    """Counts of a part of the sources: ``rows_in`` = ``rows_written`` + ``rows_quarantined``; headers and blanks extra.

    ``damage`` says why a file ends too early, if one does; the rows before the break were kept.
    """

    rows_in: int = 0
    rows_written: int = 0
    rows_quarantined: int = 0
    headers: int = 0
    blank_lines: int = 0
    damage: str = ""
    reasons: Counter[str] = field(default_factory=Counter)
    rows: Counter[str] = field(default_factory=Counter)  # by split
    positives: Counter[str] = field(default_factory=Counter)  # by split
    ids: Counter[str] = field(default_factory=Counter)  # of multi-hot features, by split and feature
    unseen: Counter[str] = field(default_factory=Counter)  # values of vocabulary features, by split and feature

    def read(self, piece: Rows) -> None:
        """Count the rows of a piece, and its lines that are not written."""
        self.rows_in += len(piece.numbers) + len(piece.rejected)
        self.rows_quarantined += len(piece.rejected)
        self.headers += piece.headers
        self.blank_lines += piece.blanks
        self.damage = self.damage or piece.damage
        self.reasons.update(rejected.reason for rejected in piece.rejected)

    def wrote(self, split: str, rows: Rows, encoded: pa.Table, spec: DatasetSpec) -> None:
        """Count rows that were written to a split, raw and encoded."""
        self.rows_written += len(rows.numbers)
        self.rows[split] += len(rows.numbers)
        self.positives[split] += int((rows.label > 0).sum())
        for feature, column in zip(spec.sparse, rows.sparse, strict=True):
            if feature.multi_hot:
                self.ids[_key(split, feature.name)] += int(column.value_lengths().to_numpy().sum())
            if feature.encoding == "vocab":
                ids = encoded[feature.name].combine_chunks()
                flat = (ids.flatten() if feature.multi_hot else ids).to_numpy()
                self.unseen[_key(split, feature.name)] += int(np.count_nonzero(flat == UNSEEN))

    def __add__(self, other: Tally) -> Tally:
        """The sums of the counts of two parts, in their order."""
        counts = [name for name in vars(self) if name != "damage"]
        sums: dict[str, Any] = {name: getattr(self, name) + getattr(other, name) for name in counts}
        return Tally(damage=self.damage or other.damage, **sums)

    def to_json(self) -> dict[str, Any]:
        """Plain numbers and dictionaries, the inverse of ``from_json``."""
        return {name: dict(value) if isinstance(value, Counter) else value for name, value in vars(self).items()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Tally:
        fields: dict[str, Any] = {name: Counter(v) if isinstance(v, dict) else v for name, v in data.items()}
        return cls(**fields)

    def of_split(self, split: str) -> dict[str, Any]:
        """Rows and positives of a split, and how many values of each feature are not in its vocabulary."""
        parts = {key.split("\t", 1)[1]: count for key, count in self.unseen.items() if key.startswith(f"{split}\t")}
        unseen = {feature: count for feature, count in sorted(parts.items()) if count}
        return {"rows": self.rows[split], "positives": self.positives[split], "unseen": unseen}

    def with_pooling(self, spec: DatasetSpec, split: str) -> DatasetSpec:
        """The spec with the mean number of ids per row of a split that has rows."""
        factors = [
            self.ids[_key(split, feature.name)] / self.rows[split] if feature.multi_hot else 1.0
            for feature in spec.sparse
        ]
        sparse = tuple(
            replace(feature, pooling_factor=factor) for feature, factor in zip(spec.sparse, factors, strict=True)
        )
        return replace(spec, sparse=sparse)


def total(tallies: Iterable[Tally]) -> Tally:
    """The sums of the counts of all parts, in their order."""
    return sum(tallies, Tally())


def report(sources: Sequence[tuple[str, bool, Tally]], splits: Iterable[str]) -> dict[str, Any]:
    """The counts of all sources as plain dictionaries and lists; each source has its path and whether it has labels.

    The label column of a source without labels is 0.
    """
    everything = total(tally for _, _, tally in sources)
    return {
        **_counts(everything),
        "reasons": dict(everything.reasons.most_common()),
        "splits": {name: everything.of_split(name) for name in splits},
        "sources": [
            {"path": path, "labelled": labelled, **_counts(tally), "damage": tally.damage}
            for path, labelled, tally in sources
        ],
    }


def _counts(tally: Tally) -> dict[str, int]:
    return {name: value for name, value in vars(tally).items() if isinstance(value, int)}


def _key(split: str, feature: str) -> str:
    return f"{split}\t{feature}"
