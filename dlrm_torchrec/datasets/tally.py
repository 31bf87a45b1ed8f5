"""The counts behind a preparation's report; every line of every source is in exactly one of them."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from dlrm_torchrec.datasets.rows import Rows
from dlrm_torchrec.schema import DatasetSpec


@dataclass
class SourceTally:
    """One raw file: ``rows_in`` = ``rows_written`` + ``rows_quarantined``; its lines are those, headers and blanks."""

    path: str
    labelled: bool  # without labels, the label column was filled with 0
    rows_in: int = 0
    rows_written: int = 0
    rows_quarantined: int = 0
    headers: int = 0
    blank_lines: int = 0
    damage: str = ""  # why the file breaks off, if it does; the rows before were kept


@dataclass
class Tally:
    """All sources, with the rows by reason and by split."""

    sources: list[SourceTally] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    rows: Counter[str] = field(default_factory=Counter)  # by split
    positives: Counter[str] = field(default_factory=Counter)  # by split
    ids: Counter[tuple[str, str]] = field(default_factory=Counter)  # of multi-hot features, by split and feature

    def start(self, path: str, labelled: bool) -> None:
        self.sources.append(SourceTally(path=path, labelled=labelled))

    def read(self, piece: Rows) -> None:
        """Count what is not written of a piece of the source started last."""
        source = self.sources[-1]
        source.rows_in += len(piece.numbers) + len(piece.rejected)
        source.rows_quarantined += len(piece.rejected)
        source.headers += piece.headers
        source.blank_lines += piece.blanks
        source.damage = source.damage or piece.damage
        self.reasons.update(rejected.reason for rejected in piece.rejected)

    def wrote(self, split: str, rows: Rows, spec: DatasetSpec) -> None:
        """Count rows that were written to a split."""
        self.sources[-1].rows_written += len(rows.numbers)
        self.rows[split] += len(rows.numbers)
        self.positives[split] += int(rows.label.sum())
        for feature, column in zip(spec.sparse, rows.sparse, strict=True):
            if feature.multi_hot:
                self.ids[split, feature.name] += int(column.value_lengths().to_numpy().sum())

    @property
    def rows_in(self) -> int:
        return sum(source.rows_in for source in self.sources)

    @property
    def rows_quarantined(self) -> int:
        return sum(source.rows_quarantined for source in self.sources)

    def with_pooling(self, spec: DatasetSpec, split: str) -> DatasetSpec:
        """The spec with the mean ids per row of a split that has rows."""
        factors = [
            self.ids[split, feature.name] / self.rows[split] if feature.multi_hot else 1.0 for feature in spec.sparse
        ]
        sparse = tuple(
            replace(feature, pooling_factor=factor) for feature, factor in zip(spec.sparse, factors, strict=True)
        )
        return replace(spec, sparse=sparse)

    def report(self) -> dict[str, Any]:
        """The counts as plain dictionaries and lists."""
        return {
            "rows_in": self.rows_in,
            "rows_written": sum(source.rows_written for source in self.sources),
            "rows_quarantined": self.rows_quarantined,
            "headers": sum(source.headers for source in self.sources),
            "blank_lines": sum(source.blank_lines for source in self.sources),
            "reasons": dict(self.reasons.most_common()),
            "splits": {name: {"rows": rows, "positives": self.positives[name]} for name, rows in self.rows.items()},
            "sources": [asdict(source) for source in self.sources],
        }
