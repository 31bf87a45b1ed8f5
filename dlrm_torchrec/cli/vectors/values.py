"""The values of a feature: the id of each, and what to call the value of an id."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dlrm_torchrec.inference.lookups import FIRST, MISSING, UNSEEN, Categories, hashed_ids, read_categories
from dlrm_torchrec.raw_values import TextForm, buckets, numbers
from dlrm_torchrec.schema import DatasetSpec, SparseFeature

COMPARED = 20_000  # most frequent values among which a misspelt one is looked for


@dataclass(frozen=True)
class Values:
    """The values of ``feature``; ``words`` are those of its vocabulary in the order of ids, null for free ids."""

    feature: SparseFeature
    form: TextForm
    words: Any = None  # an Arrow array, of a feature with a vocabulary

    @classmethod
    def of(cls, spec: DatasetSpec, feature: SparseFeature, vocabulary: str) -> Values:
        """Those of a feature of ``spec``, with the file of its vocabulary if it has one."""
        form = TextForm(missing=spec.missing, decimal=spec.decimal, thousands=spec.thousands)
        return cls(feature, form, pq.read_table(vocabulary)["value"] if vocabulary else None)

    def name(self, id: int) -> str:
        """What to call the value of an id: its text, or what its bucket holds."""
        feature = self.feature
        if id == MISSING and feature.encoding != "id":
            return "(missing)"
        match feature.encoding:
            case "vocab":
                word = None if id == UNSEEN else self.words[id - FIRST].as_py()
                return "(unseen)" if id == UNSEEN else "(free)" if word is None else str(word)
            case "hash":
                return f"bucket {id}"
            case "bucket":
                return _interval(feature.boundaries, id - 1)
        return str(id)

    def id_of(self, text: str) -> int:
        """The id of a value; ValueError, with values that are written alike, when there is no such value."""
        feature = self.feature
        if feature.encoding == "bucket":
            (number,), (malformed,) = numbers(pa.array([text]), self.form)
            if malformed:
                raise ValueError(f"value of feature {feature.name!r} must be a number: got {text!r}; correct it")
            return int(buckets(number.reshape(1), feature.boundaries)[0])
        if feature.encoding == "id":
            return self.given_id(text)
        *fields, _ = read_categories(pa.array([text]), self.form)
        categories = Categories(*fields)
        if feature.encoding == "hash":
            return int(hashed_ids([(categories, feature.rows)])[0][0])
        if not categories.is_integer[0] and not categories.is_text[0]:
            return MISSING
        word = str(categories.integers[0]) if categories.is_integer[0] else categories.texts[0].as_py()
        place = self._place(word)
        if place < 0:
            known = len(self.words) - self.words.null_count
            raise ValueError(
                f"value of feature {feature.name!r} must be one of its {known:,}: got {text!r}; {self._advice(word)}"
            )
        return FIRST + place

    def given_id(self, text: str) -> int:
        """The id that a text says; ValueError when the table has no such row."""
        rows = self.feature.rows
        if not text.isdecimal() or int(text) >= rows:
            raise ValueError(
                f"id of feature {self.feature.name!r} must be from 0 to {rows - 1}: got {text!r}; name one"
            )
        return int(text)

    @property
    def by_frequency(self) -> bool:
        """Whether smaller ids are more frequent."""
        return self.feature.encoding == "vocab"

    def _place(self, word: str) -> int:
        try:
            wanted = pa.scalar(word, pa.string()).cast(self.words.type)
        except pa.ArrowInvalid:  # a text, in a vocabulary of whole numbers
            return -1
        place: int = pc.index(self.words, wanted).as_py()
        return place

    def _advice(self, word: str) -> str:
        often = [str(each) for each in self.words[:COMPARED].drop_null().to_pylist()]
        near = [each for each in often if word.lower() in each.lower()][:3] or difflib.get_close_matches(word, often)
        if near:
            return f"did you mean {' or '.join(map(repr, near))}?"
        return f"the most frequent ones are {', '.join(map(repr, often[:5]))}"


def _interval(boundaries: tuple[float, ...], number: int) -> str:
    """What the bucket of this number holds."""
    if number == 0:
        return f"below {boundaries[0]:g}" if boundaries else "any number"
    if number == len(boundaries):
        return f"{boundaries[-1]:g} or more"
    return f"{boundaries[number - 1]:g} to {boundaries[number]:g}"
