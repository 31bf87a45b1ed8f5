"""Which column is to be predicted, and what its values mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from dlrm_torchrec import raw_values
from dlrm_torchrec.raw_values import TextForm, UnfitTypeError

NAMES = {
    *("label", "target", "y", "click", "clicked", "clicks", "conversion", "converted", "attributed", "purchase"),
    *("purchased", "bought", "install", "installed", "downloaded", "outcome", "response", "churn", "churned"),
}
_POSITIVE = {"t", "yes", "y", "click", "clicked", "positive", "good", "bought"}


@dataclass(frozen=True, kw_only=True)
class LabelProposal:
    """The label: its name, the values of the sample (N,), NaN where missing, and why."""

    name: str
    positive: str | None
    is_number: bool  # regression
    values: npt.NDArray[np.float64]
    reason: str


def find_label(columns: Mapping[str, Any], form: TextForm, wanted: str) -> LabelProposal:
    """The label ``wanted``, or the one column that has two values and the name of a label.

    Raises ValueError when it is not told by that; the sentence lists the candidates.
    """
    if wanted:
        if wanted not in columns:
            raise ValueError(f"label must be one of the columns {list(columns)}: got {wanted!r}; name it with --label")
        return _described(columns[wanted], wanted, form)
    binary = [name for name, values in columns.items() if len(_distinct(values, form, most=3)) == 2]
    named = [name for name in binary if NAMES & {*name.lower().replace("-", "_").split("_"), name.lower()}]
    if len(named) != 1:
        two = f"{named or binary} of two values" if binary else "no column of two values"
        raise ValueError(f"label must be told by its name: got {two} among {list(columns)}; name it with --label")
    return _described(columns[named[0]], named[0], form)


def _described(column: Any, name: str, form: TextForm) -> LabelProposal:
    found = _distinct(column, form, most=1 << 30)
    texts = sorted(found)
    if len(texts) < 2:
        raise ValueError(
            f"label {name!r} must have two values: got {texts}; name another with --label, or look at more --rows"
        )
    numbers, bad = _numbers(column, form)
    if len(texts) > 2:
        if bad.any() or np.isnan(numbers).all():
            raise ValueError(
                f"label {name!r} must have two values, or hold numbers: got {len(texts)} texts, {texts[:5]}; name "
                "another with --label"
            )
        low, high = np.nanmin(numbers), np.nanmax(numbers)
        return LabelProposal(
            name=name,
            positive=None,
            is_number=True,
            values=numbers,
            reason=f"label, numbers from {low:g} to {high:g}: its number is predicted (regression), not a probability",
        )
    count = dict(found)
    shares = {text: count[text] / sum(count.values()) for text in texts}
    if texts == ["0", "1"]:
        return _binary(name, None, numbers, f"label: 0 and 1, {shares['1']:.2%} are 1")
    known = [text for text in texts if text.lower() in _POSITIVE]
    if not bad.any():
        positive = max(texts, key=float)
        why = f"{positive} means 1, since it is the larger number, {shares[positive]:.2%} of the rows"
    elif len(known) == 1:
        positive, why = known[0], f"{known[0]!r} means 1, by its word; {shares[known[0]]:.2%} of the rows"
    else:
        positive = min(texts, key=lambda text: (count[text], text))
        why = f"{positive!r} means 1, since it is the rarer value, {shares[positive]:.2%} of the rows"
    ones = pc.equal(raw_values.texts(raw_values.categories(column, form)[0]), positive)
    values = ones.cast(pa.float64()).fill_null(float("nan")).to_numpy(zero_copy_only=False)
    return _binary(name, positive, values, f"label: {why}; --positive names the other")


def _binary(name: str, positive: str | None, values: npt.NDArray[np.float64], reason: str) -> LabelProposal:
    return LabelProposal(name=name, positive=positive, is_number=False, values=values, reason=reason)


def _numbers(column: Any, form: TextForm) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    try:
        return raw_values.numbers(column, form)
    except UnfitTypeError:
        return np.full(len(column), np.nan), np.ones(len(column), bool)


def _distinct(column: Any, form: TextForm, *, most: int) -> dict[str, int]:
    """The canonical values of a column with their counts; empty if there are more than ``most`` or no such values."""
    if raw_values.is_list(column.type):
        return {}
    try:
        numbers = _numbers(column, form)
        if not numbers[1].any():
            values = raw_values.number_categories(numbers[0])
        else:
            values, _ = raw_values.categories(column, form)
    except UnfitTypeError:
        return {}
    counts = pc.value_counts(raw_values.texts(values).drop_null())
    if len(counts) > most:
        return {}
    return dict(zip(counts.field("values").to_pylist(), counts.field("counts").to_pylist(), strict=True))
