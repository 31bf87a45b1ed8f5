"""The nouns of a ranking data set: features, tables, and the spec that joins them.

A spec says how raw columns become *prepared* data: Parquet columns that a stream can read without looking anything up.
What preparation measures (vocabularies, scales, buckets) is written back into it, so that two specs are equal only if
they mean the same. It is stored in ``dataset.json`` next to the data and inside every checkpoint.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from dataclasses import dataclass
from hashlib import sha256
from operator import index
from typing import Any, Literal, get_args
from urllib.parse import quote

from dlrm_torchrec.checked_json import record
from dlrm_torchrec.sequence_schema import Cross as Cross  # specs are written with these names, too
from dlrm_torchrec.sequence_schema import History as History

Encoding = Literal["id", "vocab", "hash", "bucket", "managed"]
MANAGED_IDS = 2**63 - 1  # the range of ids without a vocabulary, too large for two values to meet
WINDOW_ROWS = 65_536  # rows of data in one window; an id that repeats within a window counts as reuse
MISSING_MARKERS = ("", "NA", "N/A", "NaN", "nan", "null", "NULL", "\\N")
_MAX_NAME_BYTES = 120


def safe_name(name: str) -> str:
    """A name for a module or a file that only this column has; letters, digits, - and _ stay as they are.

    >>> safe_name("user.city"), safe_name("../x")
    ('user%2Ecity', '%2E%2E%2Fx')
    """
    safe = quote(name, safe="").replace(".", "%2E").replace("~", "%7E")
    return (
        safe if len(safe) <= _MAX_NAME_BYTES else f"{safe[:_MAX_NAME_BYTES]}-{sha256(name.encode()).hexdigest()[:16]}"
    )


@dataclass(frozen=True, kw_only=True)
class Label:
    """A column to predict; a row whose value is missing does not count for it."""

    name: str
    positive_label: str | None = None  # the value that means 1; None means that the column holds 0 and 1, or numbers


@dataclass(frozen=True, kw_only=True)
class DenseFeature:
    """One float column: part of a raw column, with a missing value replaced, then log(1 + max(x, 0)), then scaled."""

    name: str
    column: str = ""  # the raw column; empty means the column of this name
    # the number itself; 1 where it is missing and 0 elsewhere; or a time as days since 1970
    part: Literal["value", "missing", "days"] = "value"
    default: float | None = (
        0.0  # replaces a missing value; None means the mean of the training rows (standardised only)
    )
    log1p: bool = False  # preparation stores log(1 + max(x, 0))
    standardise: bool = False  # preparation stores (x - mean) / deviation
    mean: float | None = None  # of the training rows after log1p; preparation measures it
    deviation: float | None = None  # likewise

    def __post_init__(self) -> None:
        _check_choice(f"part of feature {self.name!r}", self.part, ("value", "missing", "days"))
        if self.default is None and not self.standardise:
            raise ValueError(
                f"default of feature {self.name!r} must be a number unless it is standardised: got null; "
                "write a number, or set standardise"
            )

    @property
    def raw(self) -> str:
        """The raw column."""
        return self.column or self.name


@dataclass(frozen=True, kw_only=True)
class SparseFeature:
    """One categorical column: an integer per row, or a list of integers when ``multi_hot``.

    ``encoding`` says how a raw value becomes an id in ``[0, rows)``:

    - ``id``: the value is already an id;
    - ``vocab``: id 0 means missing, id 1 means unseen; the other ids are the values seen at least ``min_count`` times;
    - ``hash``: id 0 means missing; other values get a stable 64-bit hash folded into ``[1, rows)``;
    - ``bucket``: id 0 means missing; id 1 + i is a number with i ``boundaries`` at or below it;
    - ``managed``: id 0 means missing; other values get a stable 64-bit hash folded into [1, ``MANAGED_IDS``), and the
      table gives its ``rows`` to those that training meets.

    ``rows`` may be 0 only for ``vocab``, before preparation has counted the values. Features with the same ``table``
    share one table, and with it their vocabulary.
    """

    name: str
    rows: int
    encoding: Encoding = "id"
    multi_hot: bool = False
    min_count: int = 1  # a value seen less often than this gets the id of unseen values (vocab only)
    pooling_factor: float = 1.0  # mean ids per row, measured on the data; the planner and synthetic data use it
    column: str = ""  # the raw column; empty means the column of this name
    # the value as it is; as a number, so that 2.50 and 2.5 are one; floor(ln(x)²) of a number x above 2, and the whole
    # part of others, where a missing one counts as 0; or the hour or weekday (0 is Monday) of a time, UTC
    part: Literal["value", "number", "squared_log", "hour", "weekday"] = "value"
    weights: str = ""  # raw column with a weight for each id of a multi-hot feature; empty means that all are 1
    table: str = ""  # features with the same text share a table; empty means a table of its own
    dim: int = 0  # width of its table; 0 means the model's
    boundaries: tuple[float, ...] = ()  # of buckets, ascending; empty means quantiles, which preparation measures
    vocabulary: str = ""  # digest of the vocabulary; preparation writes it

    def __post_init__(self) -> None:
        name = self.name
        _check_choice(f"encoding of feature {name!r}", self.encoding, get_args(Encoding))
        _check_choice(f"part of feature {name!r}", self.part, ("value", "number", "squared_log", "hour", "weekday"))
        least = {"vocab": 0, "hash": 2, "bucket": 3, "id": 1, "managed": 2}[self.encoding]
        if self.rows < least:
            why = {
                "hash": "id 0 is 'missing'",
                "managed": "ids without a row share one",
                "bucket": "id 0 is 'missing', and one boundary makes two buckets",
                "vocab": "0 is for a vocabulary that is still to be counted",
                "id": "name the number of distinct ids; 0 is for a vocabulary that is still to be counted",
            }[self.encoding]
            raise ValueError(
                f"rows of {self.encoding} feature {name!r} must be at least {least} ({why}): got {self.rows}; raise it"
            )
        if self.min_count < 1 or self.dim < 0 or self.pooling_factor < 0:
            raise ValueError(
                f"min_count of feature {name!r} must be at least 1, dim and pooling_factor at least 0: got "
                f"{self.min_count}, {self.dim} and {self.pooling_factor}; correct them"
            )
        if self.weights and not self.multi_hot:
            raise ValueError(
                f"feature {name!r} must be multi_hot to have weights: got weights {self.weights!r}; set multi_hot"
            )
        if list(self.boundaries) != sorted(set(self.boundaries)) or len(self.boundaries) > max(0, self.rows - 2):
            raise ValueError(
                f"boundaries of feature {name!r} must ascend and be at most rows - 2 = {self.rows - 2}: got "
                f"{list(self.boundaries)[:5]}, {len(self.boundaries)} in all; correct them or leave them out"
            )

    @property
    def raw(self) -> str:
        """The raw column."""
        return self.column or self.name

    @property
    def ids(self) -> int:
        """The number of ids that a prepared column may hold, from 0 on: the rows, unless the table manages them."""
        return MANAGED_IDS if self.encoding == "managed" else self.rows

    @property
    def table_name(self) -> str:
        """The name of the table and of the vocabulary, which others may share; ``safe_name`` makes it a file's."""
        return self.table or self.name

    @property
    def weights_name(self) -> str:
        """The prepared column with the weights; empty without weights."""
        return f"{self.name} weights" if self.weights else ""


def vocabulary_path(feature: SparseFeature) -> str:
    """The file of a vocabulary in a prepared folder or a package."""
    return f"vocab/{safe_name(feature.table_name)}.parquet"


@dataclass(frozen=True, kw_only=True)
class Table:
    """One embedding table: ``rows`` x ``dim``, looked up by ``features`` and summed over each bag."""

    name: str
    rows: int
    dim: int
    features: tuple[str, ...]
    model_dim: int = 0  # width of the vectors that the model gets, to which narrower ones are mapped; 0 means ``dim``
    weighted: bool = False  # ids have weights; all tables of a data set alike
    by_frequency: bool = False  # the ids of a vocabulary: the most frequent come first
    managed: bool = False  # the ids are any of ``MANAGED_IDS``, to which the table gives its rows

    def __post_init__(self) -> None:
        if self.rows < 1 or self.dim < 1:
            raise ValueError(
                f"table {self.name!r} must have rows and dim of at least 1: got {self.rows} x {self.dim}; raise them"
            )


@dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """The columns of a batch: labels, dense columns and sparse columns, in the model's order."""

    name: str
    label: str
    dense: tuple[DenseFeature, ...]
    sparse: tuple[SparseFeature, ...]
    positive_label: str | None = None  # the value that means 1; None means that the column already holds 0 and 1
    target: Literal["binary", "number"] = "binary"  # what labels are: 0 or 1, or any number (regression)
    more_labels: tuple[Label, ...] = ()  # further columns to predict from the same rows
    weight: str = ""  # column with the weight of each row in loss and metrics; empty means 1 for all
    history: History | None = None  # what users did, if each row is a user and the label is that of an event
    # how raw text is written
    missing: tuple[str, ...] = MISSING_MARKERS  # texts that mean a missing value, blanks around them apart
    decimal: Literal[".", ","] = "."  # mark before the fraction of a number
    thousands: Literal["", ",", ".", " ", "'", "_"] = ""  # mark between thousands of a number

    def __post_init__(self) -> None:
        if not self.sparse:
            raise ValueError(f"spec {self.name!r} must have a sparse feature: got none; add one to 'sparse'")
        names = Counter(self.prepared_names)
        twice = sorted(name for name, count in names.items() if count > 1)
        if twice or "" in names:
            raise ValueError(
                f"columns of spec {self.name!r} must have distinct names of at least a character: got "
                f"{twice or ['']} {'twice' if twice else ''}; rename them and keep the raw name in 'column'"
            )
        if self.decimal == self.thousands:
            raise ValueError(f"decimal and thousands must differ: got {self.decimal!r} for both; correct one of them")
        marked = [label.name for label in self.labels if (label.positive_label or "1").strip() in self.missing]
        if marked:
            raise ValueError(
                f"positive_label of {marked[0]!r} must not mean a missing value: got one of {list(self.missing)}; "
                "correct it, or take it out of 'missing'"
            )
        if self.history is not None:
            self.history.check([feature.name for feature in self.sparse])
        for table, features in self._by_table().items():
            kinds = {(f.rows, f.encoding, f.dim, f.min_count, f.vocabulary) for f in features}
            if len(kinds) > 1:
                raise ValueError(
                    f"features of table {table!r} must have the same rows, encoding, dim and min_count: got "
                    f"{sorted(f.name for f in features)} with {len(kinds)} different ones; make them equal"
                )

    @property
    def marks(self) -> tuple[SparseFeature, ...]:
        """How the raw values of an event's marks become ids, as for features; they have no table."""
        return tuple(
            SparseFeature(**vars(mark), multi_hot=True) for mark in (self.history.marks if self.history else ())
        )

    @property
    def context(self) -> list[str]:
        """The features of a history that are no event's: those of users, and crosses; without a history, none."""
        if self.history is None:
            return []
        return [*self.history.users([feature.name for feature in self.sparse]), *self.history.cross_names]

    @property
    def feature_names(self) -> list[str]:
        """Dense, then sparse."""
        return [*(feature.name for feature in self.dense), *(feature.name for feature in self.sparse)]

    @property
    def labels(self) -> tuple[Label, ...]:
        """All columns to predict, the main one first."""
        return (Label(name=self.label, positive_label=self.positive_label), *self.more_labels)

    @property
    def label_names(self) -> list[str]:
        """The names of all columns to predict, the main one first."""
        return [label.name for label in self.labels]

    @property
    def weighted_ids(self) -> bool:
        """Whether the ids of any feature have weights; those of other features then have the weight 1."""
        return any(feature.weights for feature in self.sparse)

    @property
    def prepared_names(self) -> list[str]:
        """All columns of prepared files: labels, the weight of rows, features, weights of ids."""
        weights = [feature.weights_name for feature in self.sparse if feature.weights]
        weight = [self.weight] if self.weight else []
        return [*(label.name for label in self.labels), *weight, *self.feature_names, *weights]

    @property
    def raw_features(self) -> list[str]:
        """The raw columns of all features, each once."""
        columns = [*(feature.raw for feature in self.dense), *(feature.raw for feature in self.sparse)]
        return list(dict.fromkeys([*columns, *(feature.weights for feature in self.sparse if feature.weights)]))

    def _by_table(self) -> dict[str, list[SparseFeature]]:
        tables: dict[str, list[SparseFeature]] = {}
        for feature in self.sparse:
            tables.setdefault(feature.table_name, []).append(feature)
        return tables

    def tables(self, dim: int) -> tuple[Table, ...]:
        """The tables, named ``t_<feature>`` or by their ``table``; of width ``dim`` unless a feature says its own."""
        return tuple(
            Table(
                name=f"t_{safe_name(name)}",
                rows=features[0].rows,
                dim=features[0].dim or dim,
                features=tuple(feature.name for feature in features),
                model_dim=dim,
                weighted=self.weighted_ids,
                by_frequency=features[0].encoding == "vocab",
                managed=features[0].encoding == "managed",
            )
            for name, features in self._by_table().items()
        )

    def to_json(self) -> dict[str, Any]:
        """Plain dictionaries and lists, the inverse of ``from_json``."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Any) -> DatasetSpec:
        """The spec that ``to_json`` wrote, or a person; ValueError names the field that is wrong."""
        return record(cls, data, "the dataset spec")

    @classmethod
    def read(cls, data: bytes) -> DatasetSpec:
        """The spec in a JSON file; ValueError says what is wrong with it."""
        try:
            return cls.from_json(json.loads(data.decode("utf-8-sig")))
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ValueError(f"a spec must be JSON in UTF-8: got {error}; correct it") from error


def _check_choice(what: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{what} must be one of {list(choices)}: got {value!r}; correct it")


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
