"""The nouns of a ranking data set: features, tables, and the spec that joins them.

A spec describes *prepared* data: Parquet columns that a stream can read without looking anything up.
It is stored in ``dataset.json`` next to the data and inside every checkpoint.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass
from operator import index
from typing import Any, Literal

Encoding = Literal["id", "vocab", "hash"]
WINDOW_ROWS = 65_536  # rows of data in one window; an id that repeats within a window counts as reuse


@dataclass(frozen=True, kw_only=True)
class DenseFeature:
    """One float column; ``default`` replaces a missing value before ``log1p`` is applied."""

    name: str
    default: float = 0.0
    log1p: bool = False  # preparation stores log(1 + max(x, 0))


@dataclass(frozen=True, kw_only=True)
class SparseFeature:
    """One categorical column: an integer per row, or a list of integers when ``multi_hot``.

    ``encoding`` says how a raw value becomes an id in ``[0, rows)``:

    - ``id``: the value is already an id;
    - ``vocab``: id 0 means missing, id 1 means unseen; the other ids are the values seen at least ``min_count`` times;
    - ``hash``: id 0 means missing; other values get a stable 64-bit hash folded into ``[1, rows)``.

    ``rows`` may be 0 only for ``vocab``, before preparation has counted the values.
    """

    name: str
    rows: int
    encoding: Encoding = "id"
    multi_hot: bool = False
    min_count: int = 1  # a value seen less often than this gets the id of unseen values (vocab only)
    pooling_factor: float = 1.0  # mean ids per row, measured on the data; the planner and synthetic data use it

    def __post_init__(self) -> None:
        if self.rows < 1 and not (self.encoding == "vocab" and self.rows == 0):
            raise ValueError(
                f"rows of feature {self.name!r} must be at least 1: got {self.rows}; "
                "name the number of distinct ids (0 is for a vocabulary that is still to be counted)"
            )
        if self.encoding == "hash" and self.rows < 2:
            raise ValueError(
                f"rows of hashed feature {self.name!r} must be at least 2 (id 0 is 'missing'): "
                f"got {self.rows}; raise it"
            )


@dataclass(frozen=True, kw_only=True)
class Table:
    """One embedding table: ``rows`` x ``dim``, looked up by ``features`` and summed over each bag."""

    name: str
    rows: int
    dim: int
    features: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.rows < 1 or self.dim < 1:
            raise ValueError(
                f"table {self.name!r} must have rows and dim of at least 1: got {self.rows} x {self.dim}; raise them"
            )


@dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """The columns of a batch: a binary label, dense columns and sparse columns, in the model's order."""

    name: str
    label: str
    dense: tuple[DenseFeature, ...]
    sparse: tuple[SparseFeature, ...]
    positive_label: str | None = None  # the text that means 1; None means that the column already holds 0 and 1

    def __post_init__(self) -> None:
        if not self.sparse:
            raise ValueError(f"spec {self.name!r} must have a sparse feature: got none; add one to 'sparse'")
        names = Counter([self.label, *self.feature_names])
        twice = sorted(name for name, count in names.items() if count > 1)
        if twice:
            raise ValueError(f"columns of spec {self.name!r} must have distinct names: got {twice} twice; rename them")

    @property
    def feature_names(self) -> list[str]:
        """Dense, then sparse."""
        return [*(feature.name for feature in self.dense), *(feature.name for feature in self.sparse)]

    def tables(self, dim: int) -> tuple[Table, ...]:
        """One table of width ``dim`` per sparse feature, named ``t_<feature>``."""
        return tuple(
            Table(name=f"t_{feature.name}", rows=feature.rows, dim=dim, features=(feature.name,))
            for feature in self.sparse
        )

    def to_json(self) -> dict[str, Any]:
        """Plain dictionaries and lists, the inverse of ``from_json``."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> DatasetSpec:
        """The spec that ``to_json`` wrote; ValueError when keys are missing or unknown."""
        try:
            fields = dict(data)
            dense = tuple(DenseFeature(**feature) for feature in fields.pop("dense"))
            sparse = tuple(SparseFeature(**feature) for feature in fields.pop("sparse"))
            return cls(dense=dense, sparse=sparse, **fields)
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(
                f"a dataset spec must have the fields of DatasetSpec: got {error}; compare it with a dataset.json "
                "that this version wrote"
            ) from error


@dataclass(frozen=True, kw_only=True)
class AccessStatistics:
    """A summary of how often each id of one sparse feature is looked up in the rows of one split.

    Entry b of the histogram counts the ids that are looked up between 2^b and 2^(b+1) - 1 times, and all lookups of
    these ids together. The last entry is not (0, 0), so there are at most 63 entries.
    """

    samples: int  # rows of data
    lookups: int  # ids in them
    distinct: int  # ids looked up at least once
    top_mass: tuple[tuple[int, float], ...]  # (k, share of lookups of the k most frequent ids), k = 1, 10, .. distinct
    # Window n is rows n * WINDOW_ROWS .. (n + 1) * WINDOW_ROWS - 1 of the split. Reuse is the share of lookups whose
    # id was already looked up in the same window: the hit rate of a cache that is emptied after each window.
    reuse: float
    histogram: tuple[tuple[int, int], ...]  # (ids, lookups)

    def __post_init__(self) -> None:
        ids, lookups = (sum(entry[part] for entry in self.histogram) for part in (0, 1))
        if (ids, lookups) != (self.distinct, self.lookups):
            raise ValueError(
                f"histogram must hold all {self.distinct} distinct ids and {self.lookups} lookups: got {ids} and "
                f"{lookups}; profile the data again"
            )
        for power, (ids, lookups) in enumerate(self.histogram):
            if not ids << power <= lookups <= ids * ((2 << power) - 1):
                raise ValueError(
                    f"ids of histogram entry {power} must have {1 << power} to {(2 << power) - 1} lookups each: got "
                    f"{ids} ids with {lookups}; profile the data again"
                )
        shares = [*(share for _, share in self.top_mass), self.reuse]
        if self.samples < 1 or not all(0 <= share <= 1 for share in shares):
            raise ValueError(
                f"statistics must cover at least 1 row and have shares in [0, 1]: got {self.samples} rows and "
                f"{shares}; profile the data again"
            )

    @property
    def pooling_factor(self) -> float:
        """Mean ids per row."""
        return self.lookups / self.samples

    def to_json(self) -> dict[str, Any]:
        """Plain dictionaries and lists, the inverse of ``from_json``."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> AccessStatistics:
        """The statistics that ``to_json`` wrote; ValueError when keys are missing or unknown, or numbers disagree."""
        try:
            fields = dict(data)
            counts = {name: index(fields.pop(name)) for name in ("samples", "lookups", "distinct")}
            top_mass = tuple((index(k), float(share)) for k, share in fields.pop("top_mass"))
            histogram = tuple((index(ids), index(lookups)) for ids, lookups in fields.pop("histogram"))
            return cls(**counts, top_mass=top_mass, histogram=histogram, **fields)
        except (TypeError, KeyError, ValueError) as error:
            raise ValueError(
                f"access statistics must be as this version writes them: got {error!r}; remove the statistics from "
                "dataset.json and profile the data again"
            ) from error
