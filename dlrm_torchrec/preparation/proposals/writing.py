"""How numbers and missing values are written in the text columns of a file, told from a sample."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from dlrm_torchrec import raw_values
from dlrm_torchrec.raw_values import TextForm
from dlrm_torchrec.schema import MISSING_MARKERS

_MAYBE_MISSING = (  # in any case
    *("?", "-", "--", ".", "none", "null", "(null)", "nil", "nan", "na", "n/a", "#n/a", "<na>", "missing", "unknown"),
)
_ODD_VALUES = 3  # a column of numbers may have so many other texts, if each is a word for a missing value
_DISTINCT = 100_000  # texts of a column that are looked at


class Marks(NamedTuple):
    """The marks before a fraction and between thousands."""

    decimal: Literal[".", ","]
    thousands: Literal["", ",", ".", " ", "'", "_"]


_MARKS = (
    Marks(".", ""),
    Marks(",", ""),
    Marks(".", ","),
    Marks(",", "."),
    Marks(".", " "),
    Marks(",", " "),
    Marks(".", "'"),
)


class Writing(NamedTuple):
    """The form of a file's text, and a sentence for each thing that was recognised."""

    marks: Marks
    missing: tuple[str, ...]
    notes: list[str]

    @property
    def form(self) -> TextForm:
        return TextForm(missing=self.missing, decimal=self.marks.decimal, thousands=self.marks.thousands)


def find_writing(columns: Mapping[str, Any]) -> Writing:
    """The writing under which most text columns are numbers; the plain one if several are as good."""
    texts = {name: _texts(values) for name, values in columns.items() if raw_values.is_text(values.type)}
    numeric = {marks: {n: odd for n, t in texts.items() if (odd := _odd(t, marks)) is not None} for marks in _MARKS}
    best = max(_MARKS, key=lambda marks: len(numeric[marks]))  # the first of equals
    notes = []
    if best != _MARKS[0]:
        gained = [name for name in numeric[best] if name not in numeric[_MARKS[0]]]
        notes.append(
            f"numbers have {best.decimal!r} before the fraction and {best.thousands!r} between thousands: "
            f"{_listed(gained)} are numbers only so"
        )
    markers = dict.fromkeys(marker for odd in numeric[best].values() for marker in odd)
    for marker in markers:
        notes.append(
            f"{marker!r} means a missing value: it stands among the numbers of "
            f"{_listed([name for name, odd in numeric[best].items() if marker in odd])}"
        )
    counts = {name: _count(values) for name, values in columns.items() if raw_values.is_text(values.type)}
    for marker in MISSING_MARKERS:
        found = [name for name, count in counts.items() if count.get(marker)]
        if marker and found:
            notes.append(
                f"{marker!r} means a missing value: {_listed(found)}; change 'missing' of the spec if it does not"
            )
    return Writing(best, (*MISSING_MARKERS, *markers), notes)


def _texts(values: Any) -> Any:
    return pc.unique(raw_values.plain(values).drop_null()).slice(0, _DISTINCT)


def _count(values: Any) -> dict[str, int]:
    found = pc.value_counts(pc.utf8_trim_whitespace(raw_values.plain(values).drop_null()))
    known = found.filter(pc.is_in(found.field("values"), value_set=pa.array(MISSING_MARKERS)))
    return dict(zip(known.field("values").to_pylist(), known.field("counts").to_pylist(), strict=True))


def _odd(texts: Any, marks: Marks) -> list[str] | None:
    """The few texts among numbers that may be words for a missing value; None if the texts are not numbers."""
    form = TextForm(missing=MISSING_MARKERS, decimal=marks.decimal, thousands=marks.thousands)
    numbers, bad = raw_values.numbers(texts, form)
    odd = {text.strip() for text in texts.filter(pa.array(bad)).slice(0, 20).to_pylist()}
    if (
        bad.sum() > 20
        or len(odd) > _ODD_VALUES
        or not {text.lower() for text in odd} <= {*_MAYBE_MISSING}
        or not (numbers == numbers).any()
    ):
        return None
    return sorted(odd)


def _listed(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
