"""What each raw column becomes: features, or nothing, with the reason and with what would change it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from dlrm_torchrec import raw_values
from dlrm_torchrec.preparation.proposals.evidence import Comparison, compare, separation
from dlrm_torchrec.raw_values import TextForm, UnfitTypeError
from dlrm_torchrec.schema import DenseFeature, SparseFeature

Role = Literal["code", "managed", "number", "time", "out"]
Floats = npt.NDArray[np.float64]

_CODE_WORDS = (
    "id",
    "code",
    "type",
    "category",
    "cat",
    "class",
    "zip",
    "postcode",
    "hash",
    "key",
    "ip",
    "device",
    "sku",
)
_NO_IDS = ("bid", "paid", "prepaid", "unpaid", "valid", "invalid", "covid")  # words that end in id and are none
_THING_WORDS = (  # of which a name that ends in one is a code: user, but not user_age
    *("user", "item", "ad", "product", "article", "movie", "campaign", "creative", "customer", "session", "publisher"),
)
_COUNT_WORDS = ("count", "cnt", "num", "total", "sum", "avg", "mean")  # device_count is no device
_TIME_WORDS = ("time", "timestamp", "ts", "date", "datetime", "day", "created", "updated", "at", "when")
_NO_QUANTITY = 2.0**53  # whole numbers from here on, such as hashes, are codes
_FEW = 32  # whole numbers of at most so many values are classes
_MANY = 100_000  # with more distinct values in the sample, a vocabulary would be mostly values seen once
_SKEWED = 10  # a number gets a logarithm if its largest value is more than so many times its mean
_WILD = 30  # deviations from the mean beyond which a number is left to its buckets
_REPEATED_ROWS = 5  # rows per value from which the exact value of a number is a category, too
_SURE = 3.0  # standard errors from which a difference counts
_MORE = 1.25  # a code's values explain so many times what its size explains
_SOME = 0.005  # share of the label that must be explained to count
_LEAK = 0.999  # a column that alone has such an AUC is probably known only after the label
_BY_CHANCE = 1e-9  # a column that only positive rows have, less probably than this by chance, is known after the label
_FEW_OTHERS = 0.05  # share of other texts below which a column of numbers has probably faults
_OFTEN = 10_000  # rows from which a value must be seen twice to count
_FEWEST_BUCKETS, _MOST_BUCKETS = 8, 32  # of a number, with equally many rows each
_BUCKET_ROWS = 250  # of the sample, before a number gets more buckets
_DAY_S = 86_400
_WEEK_S = 8 * _DAY_S  # of times: rows for training then have every weekday, though the latest rows may be held out
_YEARS_S = 20 * 365.25 * _DAY_S


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """What becomes of one raw column."""

    column: str
    reason: str
    change: str = ""  # what would change it
    dense: tuple[DenseFeature, ...] = ()
    sparse: tuple[SparseFeature, ...] = ()

    @property
    def line(self) -> str:
        """What it becomes, why, and what would change it."""
        kinds = [*(_dense_kind(feature) for feature in self.dense), *(_sparse_kind(feature) for feature in self.sparse)]
        what = ", ".join(kinds) or "left out"
        return f"{what}: {self.reason}" + (f"; {self.change}" if self.change else "")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What the rows of the sample have in common."""

    form: TextForm
    labels: Floats  # (N,), NaN where missing
    is_number: bool  # labels are numbers, not 0 and 1
    roles: dict[str, Role] = field(default_factory=dict)  # that a person chose, by column


def propose_column(name: str, values: Any, sample: Sample) -> Proposal:
    """What a column, an Arrow array (N,), becomes."""
    wanted = sample.roles.get(name)
    if wanted == "out":
        return Proposal(column=name, reason="you said so")
    try:
        if raw_values.is_list(values.type) or _has_lists(values):
            return _lists(name, values, sample)
        raw_values.plain(values)
        if wanted is None and (leak := _leak_of_presence(values, sample)):
            return Proposal(column=name, reason=leak, change=f"--codes, --numbers or --times {name} keeps it")
        numbers, seconds = _numbers(values, sample.form), _times(name, values, sample.form, wanted)
        if wanted in (None, "time") and seconds is not None:
            return _time(name, seconds, sample)
        if wanted in (None, "number") and numbers is not None:
            return _number(name, numbers, sample, is_float=pa.types.is_floating(raw_values.plain(values).type))
        if wanted in ("number", "time"):
            raise ValueError(f"column {name!r} must hold {wanted}s to be one: got others; leave it to the proposal")
        return _category(name, values, sample, "")
    except UnfitTypeError as error:
        return Proposal(column=name, reason=f"a column of type {error} is no feature", change="convert it")


def _lists(name: str, values: Any, sample: Sample) -> Proposal:
    flat = pc.split_pattern(values, "|").flatten() if raw_values.is_text(values.type) else raw_values.lists(values)[0]
    found, bad = raw_values.categories(flat, sample.form)
    distinct = len(pc.unique(found.drop_null()))
    if bad.any() or not distinct:
        return Proposal(column=name, reason="its lists hold no whole numbers or texts", change="convert them")
    feature = _coded(name, distinct, sample, multi_hot=True)
    return Proposal(
        column=name, sparse=(feature,), reason=f"lists of {distinct:,} values", change=_change_of_hash(feature)
    )


def _time(name: str, seconds: Floats, sample: Sample) -> Proposal:
    span = float(np.nanmax(seconds) - np.nanmin(seconds))
    parts: list[SparseFeature] = []
    if (seconds[~np.isnan(seconds)] % _DAY_S).any():
        parts.append(SparseFeature(name=f"{name}_hour", column=name, part="hour", rows=0, encoding="vocab"))
    if span > _WEEK_S:
        parts.append(SparseFeature(name=f"{name}_weekday", column=name, part="weekday", rows=0, encoding="vocab"))
    if leak := _leak(np.where(np.isnan(seconds), np.nan, seconds), sample):
        return Proposal(column=name, reason=leak, change=f"--times {name} keeps it")
    days = DenseFeature(name=f"{name}_days", column=name, part="days", standardise=True, default=None)
    since, until = (np.datetime64(int(each), "s") for each in (np.nanmin(seconds), np.nanmax(seconds)))
    return Proposal(
        column=name,
        dense=(days, *_missing(name, seconds)) if span else _missing(name, seconds),
        sparse=tuple(parts),
        reason=f"times from {since} to {until} UTC{_tail(seconds)}",
        change=f"--numbers {name} or --codes {name} takes them otherwise",
    )


def _number(name: str, numbers: Floats, sample: Sample, *, is_float: bool) -> Proposal:
    wanted, present = sample.roles.get(name), numbers[~np.isnan(numbers)]
    distinct, whole = len(np.unique(present)), bool((np.floor(present) == present).all())
    if distinct < 2:
        return _constant(name, distinct)
    if wanted is None:
        code = "with the name of a code" if _is_code(name) else ""
        if not is_float and np.abs(present).max() >= _NO_QUANTITY:
            code = "too large for a quantity"
        if whole and distinct == len(present) > 2 and _is_steady(present):
            return Proposal(column=name, reason="it numbers the rows", change=f"--numbers {name} keeps it")
        if whole and distinct == len(present) > _FEW and code:
            return Proposal(column=name, reason="an id that never repeats", change=f"--codes {name} keeps it")
        if leak := _leak(numbers, sample):
            return Proposal(column=name, reason=leak, change=f"--numbers {name} keeps it")
        if whole and code:
            return _coded_number(name, numbers, f"whole numbers {code}", sample)
        if whole and distinct <= _FEW:
            return _coded_number(name, numbers, f"at most {_FEW} whole numbers", sample)
    known = ~np.isnan(sample.labels)
    told = compare(numbers[known], sample.labels[known])
    if wanted is None and whole and distinct == len(present) > _FEW and told.by_size < _SOME:
        return Proposal(
            column=name,
            reason="every row has another whole number, whose size tells nothing of the label",
            change=f"--numbers {name} or --codes {name} keeps it",
        )
    if wanted is None and whole and told.errors > _SURE and told.by_value > _MORE * max(0.0, told.by_size):
        return _coded_number(name, numbers, f"its order tells little of the label, {_told(told)}", sample)
    low, high, mean = float(present.min()), float(present.max()), float(present.mean())
    skewed = low >= 0 and high > _SKEWED * mean
    scaled = np.log1p(present) if skewed else present
    wild = np.abs(scaled - scaled.mean()).max() > _WILD * (scaled.std() or 1.0)
    dense = () if wild else (DenseFeature(name=name, log1p=skewed, standardise=True, default=None),)
    buckets = max(_FEWEST_BUCKETS, min(_MOST_BUCKETS, len(numbers) // _BUCKET_ROWS))
    ids = 1 + max(2, min(buckets, distinct))  # 0 is for missing values
    sparse = [SparseFeature(name=f"{name}_bucket", column=name, rows=ids, encoding="bucket")]
    if len(present) >= _REPEATED_ROWS * distinct and distinct > sparse[0].rows:
        sparse.append(_exact(name, f"{name}_value", len(numbers)))
    why = f"{low:g} to {high:g}" + (f", the largest over {_SKEWED} times the mean" if skewed else "")
    return Proposal(
        column=name,
        dense=(*dense, *_missing(name, numbers)),
        sparse=tuple(sparse),
        reason=f"numbers from {why}{_tail(numbers)}" + (f", {_told(told)}" if whole else ""),
        change=f"--codes {name} makes it a category" if whole else "",
    )


def _category(name: str, values: Any, sample: Sample, why: str) -> Proposal:
    found, bad = raw_values.categories(values, sample.form)
    counts = pc.value_counts(found.drop_null())
    distinct, rows = len(counts), len(found) - found.null_count
    if distinct < 2:
        return _constant(name, distinct)
    if bad.any():
        return Proposal(column=name, reason="numbers with a fraction are no categories", change=f"--numbers {name}")
    if distinct == rows > _FEW and sample.roles.get(name) is None:
        return Proposal(column=name, reason="every row has another value", change=f"--codes {name} keeps it")
    texts = raw_values.texts(found).dictionary_encode()
    codes = texts.indices.fill_null(distinct).to_numpy().astype(np.float64)
    if distinct <= _FEW and sample.roles.get(name) is None and (leak := _leak_of_classes(codes, sample)):
        return Proposal(column=name, reason=leak, change=f"--codes {name} keeps it")
    missing = f", {found.null_count / len(found):.1%} missing" if found.null_count else ""
    why += _almost_numbers(values, sample.form)
    feature = _coded(name, distinct, sample, rows=len(found))
    return Proposal(
        column=name,
        sparse=(feature,),
        reason=f"{distinct:,} distinct values in {len(found):,} rows{missing}{why}",
        change=_change_of_hash(feature),
    )


def _almost_numbers(values: Any, form: TextForm) -> str:
    """What to do about a column that would be a quantity but for a few texts; empty if it is none."""
    if not raw_values.is_text(raw_values.plain(values).type):
        return ""
    _, bad = raw_values.numbers(values, form)
    others, rows = int(bad.sum()), int(raw_values.present(values, form).sum())
    if not 0 < others < _FEW_OTHERS * rows:
        return ""
    example = values.filter(pa.array(bad))[0].as_py()
    return (
        f", numbers but for {others:,} like {example!r}: to have a quantity, repair them, or add them to 'missing' of "
        "the spec and make the column dense there"
    )


def _coded_number(name: str, numbers: Floats, why: str, sample: Sample) -> Proposal:
    distinct = len(np.unique(numbers[~np.isnan(numbers)]))
    feature = _coded(name, distinct, sample, rows=len(numbers))
    changes = [f"--numbers {name} makes it a quantity", _change_of_hash(feature)]
    return Proposal(
        column=name,
        sparse=(feature,),
        reason=f"{why}; {distinct:,} distinct in {len(numbers):,} rows{_tail(numbers)}",
        change="; ".join(filter(None, changes)),
    )


def _coded(name: str, distinct: int, sample: Sample, *, rows: int = 0, multi_hot: bool = False) -> SparseFeature:
    """A feature of so many values: managed if a person says so, hashed if a vocabulary would be mostly rare values.

    Hashed values get two to four times as many rows as the sample has values, because they meet in rows. Managed ones
    get half of that, because they do not meet.
    """
    if sample.roles.get(name) == "managed":
        return SparseFeature(name=name, rows=1 << distinct.bit_length(), encoding="managed", multi_hot=multi_hot)
    if distinct > _MANY:
        return SparseFeature(name=name, rows=1 << (2 * distinct).bit_length(), encoding="hash", multi_hot=multi_hot)
    often = 2 if rows >= _OFTEN else 1
    return SparseFeature(name=name, rows=0, encoding="vocab", multi_hot=multi_hot, min_count=often)


def _change_of_hash(feature: SparseFeature) -> str:
    name = feature.name
    return (
        f"--managed {name} gives each value that training meets a row of its own" if feature.encoding == "hash" else ""
    )


def _exact(column: str, name: str, rows: int) -> SparseFeature:
    often = 2 if rows >= _OFTEN else 1
    return SparseFeature(name=name, column=column, part="number", rows=0, encoding="vocab", min_count=often)


def _missing(name: str, values: Floats) -> tuple[DenseFeature, ...]:
    if not np.isnan(values).any():
        return ()
    return (DenseFeature(name=f"{name}_missing", column=name, part="missing"),)


def _numbers(values: Any, form: TextForm) -> Floats | None:
    """The column as numbers (N,); None if it holds others, or none."""
    try:
        numbers, bad = raw_values.numbers(values, form)
    except UnfitTypeError:
        return None
    return None if bad.any() or np.isnan(numbers).all() or pa.types.is_boolean(values.type) else numbers


def _times(name: str, values: Any, form: TextForm, wanted: Role | None) -> Floats | None:
    """The column as seconds since 1970 (N,); None if it is not one of times."""
    try:
        seconds, bad = raw_values.times(values, form)
    except UnfitTypeError:
        return None
    present = seconds[~np.isnan(seconds)]
    if bad.any() or not len(present):
        return None
    if wanted == "time" or pa.types.is_temporal(raw_values.plain(values).type) or _numbers(values, form) is None:
        return seconds
    steady = bool((np.diff(present) >= 0).all())
    near = present.min() >= 9e8 and present.max() < 2.5e9 and np.ptp(present) < _YEARS_S
    return seconds if near and (steady or _has_word(name, _TIME_WORDS)) else None


def _leak(values: Floats, sample: Sample) -> str:
    """Why a column must be known only after the label; empty if it need not be."""
    known = ~np.isnan(sample.labels)
    if sample.is_number or known.sum() < _FEW:
        return ""
    auc = separation(values[known], sample.labels[known] == 1)
    return f"alone it tells the label (AUC {auc:.4f}), so it is probably known only after it" if auc > _LEAK else ""


def _leak_of_classes(codes: Floats, sample: Sample) -> str:
    known = ~np.isnan(sample.labels)
    if sample.is_number or known.sum() < _FEW:
        return ""
    places, labels = codes[known].astype(np.int64), sample.labels[known]
    means = np.bincount(places, weights=labels) / np.maximum(1, np.bincount(places))
    return _leak(means[codes.astype(np.int64).clip(max=len(means) - 1)], sample)


def _leak_of_presence(values: Any, sample: Sample) -> str:
    known = ~np.isnan(sample.labels)
    there = raw_values.present(values, sample.form) & known
    if sample.is_number or there.sum() < _FEW or not (sample.labels[there] == 1).all():
        return ""
    by_chance = there.sum() * math.log((sample.labels[known] == 1).mean())
    if by_chance > math.log(_BY_CHANCE):
        return ""
    return f"only positive rows have a value, {there.sum():,} of them, so it is probably known only after the label"


def _constant(name: str, distinct: int) -> Proposal:
    return Proposal(column=name, reason="it has one value only" if distinct else "all its values are missing")


def _has_lists(values: Any) -> bool:
    if not raw_values.is_text(values.type):
        return False
    return (pc.mean(pc.match_substring(raw_values.plain(values), "|")).as_py() or 0) > 0.01


def _is_steady(numbers: Floats) -> bool:
    steps = np.diff(numbers)
    return bool((steps == steps[0]).all() and steps[0] != 0)


def _is_code(name: str) -> bool:
    if _has_word(name, _COUNT_WORDS):
        return False
    words = [word for word in _words(name) if not word.isdigit()]
    is_thing = bool(words) and words[-1] in _THING_WORDS
    return is_thing or _has_word(name, _CODE_WORDS) or any(w.endswith("id") and w not in _NO_IDS for w in words)


def _has_word(name: str, words: tuple[str, ...]) -> bool:
    return bool({*words} & {*_words(name), *(word.rstrip("s") for word in _words(name))})


def _words(name: str) -> list[str]:
    apart = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name)  # userId is user id
    return "".join(c.lower() if c.isalnum() else " " for c in apart).split()


def _told(told: Comparison) -> str:
    return f"by its values {max(0.0, told.by_value):.1%} and by its size {max(0.0, told.by_size):.1%} of the label"


def _tail(values: Floats) -> str:
    missing = float(np.isnan(values).mean())
    return f", {missing:.1%} missing" if missing else ""


def _dense_kind(feature: DenseFeature) -> str:
    if feature.part == "missing":
        return "whether it is missing"
    if feature.part == "days":
        return "days, standardised"
    return "log(1 + x), standardised" if feature.log1p else "number, standardised"


def _sparse_kind(feature: SparseFeature) -> str:
    if feature.encoding == "bucket":
        return f"{feature.rows - 1} buckets"
    if feature.part in ("hour", "weekday"):
        return feature.part
    kind = "exact value" if feature.part == "number" else "lists" if feature.multi_hot else "category"
    if feature.encoding == "managed":
        return f"{kind}, {feature.rows:,} rows for the values that training meets"
    return f"{kind}, hashed into {feature.rows:,} rows" if feature.encoding == "hash" else kind
