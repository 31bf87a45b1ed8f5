"""One value, one meaning: the canonical form of raw values, whatever type and file they came in.

Preparation and serving both use this file, and a package holds a copy of it; it needs only numpy and pyarrow.

- *Missing* is null, NaN, and a text that is one of the ``missing`` markers; blanks around a text never count.
- A *category* is an int64 or a text. 1, 1.0, true, "1", " 1", "1.0" and "True" are the number 1. "01", "1e3" and "2.50"
  are texts. A typed number with a fraction, or a float of 2^53 and more, could mean several texts and is malformed.
- A *number* is what a float column or a text such as "-1.5e3" says, with the file's marks for fraction and thousands;
  a sign of a currency before or after it does not count.
- A *time* is seconds since 1970, UTC: a timestamp or a date, an ISO 8601 text (also as databases write it, with a blank
  before the zone or UTC in its place), eight digits YYYYMMDD, or whole seconds, milliseconds, microseconds or
  nanoseconds since 1970, told by their size. A time without a zone is UTC.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import types

Mask = npt.NDArray[np.bool_]

NUMBER = r"^[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?$"
_DIGITS = r"^-?(0|[1-9][0-9]{0,18})$"
_WITH_ZEROS = r"^-?(0|[1-9][0-9]{0,18})(\.0*)?$"
_INT64_START, _INT64_END = str(-(2**63)), str(2**63 - 1)
_EXACT = 2.0**53  # every whole number below is a float64 of its own
_UNITS = ((1e8, 1e11, 1.0), (1e11, 1e14, 1e3), (1e14, 1e17, 1e6), (1e17, 1e19, 1e9))  # from, to, per second
_DAY_S = 86_400
_BOOLEANS = pa.array(["true", "false"])


@dataclass(frozen=True, kw_only=True)
class TextForm:
    """How raw text is written; the fields are those of a spec."""

    missing: Sequence[str]
    decimal: str
    thousands: str


class UnfitTypeError(ValueError):
    """A column's type has no canonical form of the wanted kind; the message says which type."""


def is_list(kind: Any) -> bool:
    """Whether a column holds a list of values per row."""
    tests = (types.is_list, types.is_large_list, types.is_fixed_size_list, types.is_list_view, types.is_large_list_view)
    return any(test(kind) for test in tests)


def is_text(kind: Any) -> bool:
    """Whether values are text."""
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def plain(values: Any) -> Any:
    """The values without dictionaries, run lengths, views and large offsets; bytes become text, NaN becomes null.

    Raises UnfitTypeError for types that hold no single value per row.
    """
    kind = values.type
    if isinstance(kind, pa.BaseExtensionType):
        return plain(values.storage)
    if types.is_dictionary(kind):
        return plain(values.dictionary_decode())
    if types.is_run_end_encoded(kind):
        return plain(pc.run_end_decode(values))
    if is_text(kind):
        return values.cast(pa.string())
    if (
        types.is_binary(kind)
        or types.is_large_binary(kind)
        or types.is_binary_view(kind)
        or types.is_fixed_size_binary(kind)
    ):
        return pa.array([_decoded(each) for each in values.to_pylist()], pa.string())
    if types.is_floating(kind):
        numbers = values.cast(pa.float64())
        return pc.if_else(pc.is_nan(numbers), pa.scalar(None, pa.float64()), numbers)
    if (
        types.is_decimal(kind)
        or types.is_integer(kind)
        or types.is_boolean(kind)
        or types.is_null(kind)
        or types.is_temporal(kind)
    ):
        return values
    raise UnfitTypeError(f"{kind}")


def present(values: Any, form: TextForm) -> Mask:
    """Which of B values are not missing. Raises UnfitTypeError for types that hold no single value per row."""
    values = plain(values)
    return _numpy((_present(values, form.missing) if is_text(values.type) else values).is_valid())


def lists(values: Any) -> tuple[Any, npt.NDArray[np.int64]]:
    """The flat values of a column of lists, and where each row begins and ends (B + 1); a null list is empty."""
    kind = values.type
    if not is_list(kind):
        raise UnfitTypeError(f"{kind}")
    lengths = _numpy(pc.list_value_length(values).fill_null(0)).astype(np.int64)
    return pc.list_flatten(values), np.concatenate([[0], np.cumsum(lengths)])


def split_lists(texts: Any, separator: str, missing: Sequence[str]) -> Any:
    """Lists of the separated values of B texts; that of a missing text is null, an empty text in a list is null."""
    found = pc.split_pattern(_present(texts, missing), separator)
    flat = found.flatten()
    flat = pc.if_else(pc.equal(flat, ""), pa.scalar(None, pa.string()), flat)
    return pa.ListArray.from_arrays(found.offsets, flat)


def categories(values: Any, form: TextForm) -> tuple[Any, Mask]:
    """The canonical categories of B values, int64 or text that may hold whole numbers, and which are malformed.

    See ``kinds`` for the text. Raises UnfitTypeError for a type that has no categories.
    """
    values = plain(values)
    kind = values.type
    well = np.zeros(len(values), bool)
    if types.is_null(kind):
        return values.cast(pa.int64()), well
    if types.is_boolean(kind):
        return values.cast(pa.uint8()).cast(pa.int64()), well
    if types.is_uint64(kind):
        if (pc.max(values).as_py() or 0) < 2**63:
            return values.cast(pa.int64()), well
        return values.cast(pa.string()), well
    if types.is_integer(kind):
        return values.cast(pa.int64()), well
    if types.is_decimal(kind) or types.is_floating(kind):
        numbers = values.cast(pa.float64())
        whole = pc.and_(pc.equal(pc.floor(numbers), numbers), pc.less(pc.abs(numbers), _EXACT)).fill_null(
            fill_value=True
        )
        return pc.if_else(whole, numbers, 0.0).cast(pa.int64()), ~_numpy(whole)
    if types.is_duration(kind):
        raise UnfitTypeError(f"{kind}")
    if not is_text(kind):
        # times as ISO 8601, with as many digits of the second as they need, whatever their unit
        moments = pc.replace_substring_regex(values.cast(pa.string()), r"(\.[0-9]*[1-9])0+(Z?)$", r"\1\2")
        return pc.replace_substring_regex(moments, r"\.0+(Z?)$", r"\1"), well
    coded = values.dictionary_encode()  # most columns have far fewer distinct texts than rows
    words, whole = _canonical_words(coded.dictionary, form)
    if whole:
        words = words.cast(pa.int64())
    return words.take(coded.indices), well


def kinds(values: Any) -> tuple[Any, Any]:
    """Categories as whole numbers and as texts: an int64 and a string array (B,), each null where the other is not.

    A text that ``categories`` returns may be a whole number, since some other text of its piece is none.
    """
    if types.is_integer(values.type):
        return values, pa.nulls(len(values), pa.string())
    if not _any_like_number(values):
        return pa.nulls(len(values), pa.int64()), values
    whole = _is_whole(values)
    return pc.if_else(whole, values, None).cast(pa.int64()), pc.if_else(whole, None, values)


def numbers(values: Any, form: TextForm) -> tuple[npt.NDArray[np.float64], Mask]:
    """Numbers (B,) as float64, NaN for missing, and which are malformed. Raises UnfitTypeError for other types."""
    values = plain(values)
    kind = values.type
    bad = np.zeros(len(values), bool)
    if is_text(kind):
        coded = values.dictionary_encode()
        words = _without_currency(_read_booleans(_present(coded.dictionary, form.missing)))
        if form.thousands:
            mark, point = _escaped(form.thousands), _escaped(form.decimal)
            grouped = rf"^[+-]?[0-9]{{1,3}}({mark}[0-9]{{3}})+({point}[0-9]*)?$"
            bare = pc.replace_substring(words, form.thousands, "")
            words = pc.if_else(pc.match_substring_regex(words, grouped), bare, words)
        if form.decimal != ".":
            dots = pc.match_substring(words, ".")
            words = pc.if_else(dots, "?", pc.replace_substring(words, form.decimal, "."))
        valid = pc.match_substring_regex(words, NUMBER).fill_null(fill_value=True)
        read = pc.if_else(valid, words, None).cast(pa.float64())
        places = coded.indices
        bad = ~_numpy(valid.take(places).fill_null(fill_value=True))
        values = read.take(places)
    elif types.is_boolean(kind):
        values = values.cast(pa.uint8())
    elif types.is_duration(kind):
        values = pc.divide(values.cast(pa.duration("ns")).cast(pa.int64()).cast(pa.float64()), 1e9)
    elif types.is_temporal(kind):
        raise UnfitTypeError(f"{kind}")
    return _numpy(values.cast(pa.float64(), safe=False).fill_null(float("nan"))).astype(np.float64), bad


def times(values: Any, form: TextForm) -> tuple[npt.NDArray[np.float64], Mask]:
    """Seconds since 1970 (B,), NaN for missing, and which are malformed. Raises UnfitTypeError for other types."""
    values = plain(values)
    kind = values.type
    if types.is_timestamp(kind) or types.is_date(kind):
        micros = values.cast(pa.timestamp("us", getattr(kind, "tz", None)), safe=False).cast(pa.int64())
        return _numpy(micros.cast(pa.float64()).fill_null(float("nan"))).astype(np.float64) / 1e6, np.zeros(
            len(values), bool
        )
    if types.is_temporal(kind) or types.is_boolean(kind):
        raise UnfitTypeError(f"{kind}")
    if not is_text(kind):
        seconds, bad = numbers(values, form)
        return _since_1970(seconds, bad)
    coded = values.dictionary_encode()
    words = _present(coded.dictionary, form.missing)
    seconds, bad = numbers(words, form)
    seconds, bad = _since_1970(seconds, bad)
    for i in np.flatnonzero(bad):
        seconds[i] = _iso_seconds(words[i].as_py())
    bad &= np.isnan(seconds)
    places = _numpy(coded.indices.fill_null(len(words))).astype(np.int64)
    return np.append(seconds, np.nan)[places], np.append(bad, np.False_)[places]


def hours(seconds: npt.NDArray[np.float64]) -> Any:
    """The hour of the day (B,), 0 to 23, as int64 categories; null for NaN."""
    return _whole_numbers(seconds % _DAY_S // 3600)


def weekdays(seconds: npt.NDArray[np.float64]) -> Any:
    """The day of the week (B,), 0 for Monday to 6, as int64 categories; null for NaN."""
    return _whole_numbers((seconds // _DAY_S + 3) % 7)  # 1970 began on a Thursday


def number_categories(values: npt.NDArray[np.float64]) -> Any:
    """Numbers as categories: whole ones as int64 or their digits, others as the shortest text; null for NaN."""
    fraction = (np.floor(values) != values) | (np.abs(values) >= _EXACT)
    if not (fraction & ~np.isnan(values)).any():
        return _whole_numbers(values)
    return pa.array(
        [
            None if x != x else repr(x) if f else str(int(x))
            for x, f in zip(values.tolist(), fraction.tolist(), strict=True)
        ],
        pa.string(),
    )


def squared_logs(values: npt.NDArray[np.float64]) -> Any:
    """floor(ln(x)²) of each number x above 2, the whole part of others, as int64 categories (B,); NaN counts as 0.

    Source: BARS' ``convert_to_bucket`` for Criteo_x4, after the winner of Criteo's challenge; 3 and 4 share 1 with 1.
    """
    numbers = np.nan_to_num(values)
    return _whole_numbers(np.where(numbers > 2, np.floor(np.log(np.maximum(numbers, 2)) ** 2), np.trunc(numbers)))


def buckets(values: npt.NDArray[np.float64], boundaries: Sequence[float]) -> npt.NDArray[np.int64]:
    """Ids (B,): 0 for NaN, else 1 + the number of boundaries at or below the value."""
    return np.where(np.isnan(values), 0, 1 + np.searchsorted(np.asarray(boundaries, np.float64), values, side="right"))


def scaled(values: npt.NDArray[np.float64], feature: Any) -> npt.NDArray[np.float32]:
    """Numbers (B,) as a dense feature stores them: default, log(1 + max(x, 0)), then (x - mean) / deviation."""
    default = feature["default"]
    missing = np.isnan(values)
    result = values if default is None else np.where(missing, default, values)
    if feature["log1p"]:
        result = np.log1p(np.maximum(result, 0.0)) + 0.0  # max may give 0 or -0, depending on memory; this makes it 0
    if feature["standardise"]:
        result = (result - feature["mean"]) / feature["deviation"]
    if default is None:
        result = np.where(missing, 0.0, result)
    return result.astype(np.float32)


def texts(values: Any) -> Any:
    """Canonical categories as text: whole numbers as their digits."""
    return values.cast(pa.string())


def vocabulary_digest(chunks: Iterable[Any]) -> str:
    """What tells one vocabulary from another: 16 hexadecimal digits of SHA-256 of its values in the order of their ids.

    A whole number counts as its eight bytes, the lowest first; a text as its UTF-8 with a zero byte after it. A null,
    the place of a free id, counts as 0 or as the empty text; if there are any, the byte 255 and the SHA-256 of their
    places follow.
    """
    digest, empty, zero = sha256(), pa.scalar("", pa.large_string()), pa.scalar("\0", pa.large_string())
    free, any_free, first = sha256(), False, 0
    for values in chunks:
        if values.null_count:
            places = first + np.flatnonzero(_numpy(values.is_null()))
            free.update(places.astype("<i8").tobytes())
            any_free, values = True, values.fill_null(0 if types.is_integer(values.type) else "")
        first += len(values)
        if types.is_integer(values.type):
            digest.update(values.to_numpy().astype("<i8").tobytes())
            continue
        ended = pc.binary_join_element_wise(values.cast(pa.large_string()), empty, zero)
        _, ends, data = ended.buffers()
        bounds = np.frombuffer(ends, np.int64)[ended.offset : ended.offset + len(ended) + 1]
        digest.update(memoryview(data or b"")[bounds[0] : bounds[-1]] if len(ended) else b"")
    if any_free:
        digest.update(b"\xff" + free.digest())
    return digest.hexdigest()[:16]


def _canonical_words(words: Any, form: TextForm) -> tuple[Any, bool]:
    """Canonical texts of distinct texts, and whether all of them are whole numbers."""
    words = _read_booleans(_present(words, form.missing))
    if not _any_like_number(words):
        return words, words.null_count == len(words)
    short = pc.replace_substring_regex(words, r"\.0*$", "")
    whole = pc.and_(pc.match_substring_regex(words, _WITH_ZEROS), _is_whole(short))
    words = pc.if_else(whole, pc.if_else(pc.equal(short, "-0"), "0", short), words)
    return words, bool(pc.all(whole.fill_null(fill_value=True)).as_py())


def _is_whole(words: Any) -> Any:
    """Whether texts are int64 without leading zeros; null where they are null."""
    digits = pc.replace_substring_regex(words, "^-", "")
    short = pc.less(pc.utf8_length(digits), len(_INT64_END))
    fits = pc.or_(pc.less_equal(digits, _INT64_END), pc.equal(words, _INT64_START))
    return pc.and_(pc.match_substring_regex(words, _DIGITS), pc.or_(short, fits))


def _any_like_number(words: Any) -> bool:
    """Whether some text may be a whole number; most columns of text have none, which saves most of the work."""
    return bool(pc.any(pc.match_substring_regex(words, "^-?[0-9]")).as_py())


def _present(words: Any, missing: Sequence[str]) -> Any:
    """Texts without blanks around them; null for a marker of missing values."""
    words = pc.utf8_trim_whitespace(words)
    return pc.if_else(
        pc.is_in(words, value_set=pa.array(list(missing), pa.string())), pa.scalar(None, pa.string()), words
    )


def _read_booleans(words: Any) -> Any:
    lower = pc.utf8_lower(words)
    if not pc.any(pc.is_in(lower, value_set=_BOOLEANS)).as_py():
        return words
    return pc.if_else(pc.equal(lower, "true"), "1", pc.if_else(pc.equal(lower, "false"), "0", words))


def _without_currency(words: Any) -> Any:
    """Texts without one of the signs $, €, £ and ¥ before the digits or at the end."""
    if not pc.any(pc.match_substring_regex(words, "[$€£¥]")).as_py():
        return words
    return pc.replace_substring_regex(words, r"^([+-]?) ?[$€£¥] ?([+-]?[0-9.,])|(?:([0-9.,]) ?[$€£¥])$", r"\1\2\3")


def _since_1970(values: npt.NDArray[np.float64], bad: Mask) -> tuple[npt.NDArray[np.float64], Mask]:
    """Seconds of whole numbers that are dates, or counts since 1970 in any unit; NaN and malformed for all others."""
    seconds = np.full(len(values), np.nan)
    with np.errstate(invalid="ignore"):
        for low, high, per_second in _UNITS:
            fits = (values >= low) & (values < high)
            seconds[fits] = values[fits] / per_second
        dated = np.flatnonzero((values >= 19_000_101) & (values < 21_000_000) & (np.floor(values) == values))
    for i in dated:
        text = f"{int(values[i])}"
        seconds[i] = _iso_seconds(f"{text[:4]}-{text[4:6]}-{text[6:]}")
    return seconds, bad | (np.isnan(seconds) & ~np.isnan(values))


def _iso_seconds(text: str) -> float:
    """Seconds since 1970 of an ISO 8601 text; NaN if it is none."""
    text = re.sub(r" (?=[+-]\d{2}:?(\d{2})?$)", "", re.sub(r"(?<=\d) ?(UTC|GMT)$", "Z", text))
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return float("nan")
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _whole_numbers(values: npt.NDArray[np.float64]) -> Any:
    missing = np.isnan(values)
    return pa.array(np.where(missing, 0, values).astype(np.int64), mask=missing)


def _decoded(value: bytes | None) -> str | None:
    return None if value is None else value.decode("utf-8", "backslashreplace")


def _escaped(mark: str) -> str:
    return rf"[{mark}]"


def _numpy(column: Any) -> npt.NDArray[Any]:
    values: npt.NDArray[Any] = column.to_numpy(zero_copy_only=False)
    return values
