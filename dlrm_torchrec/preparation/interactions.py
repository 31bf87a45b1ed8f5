"""Reads lists of who did what: a user and an item in each row, and perhaps a rating and a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dlrm_torchrec import raw_values
from dlrm_torchrec.preparation.readers.tables import Form, whole
from dlrm_torchrec.preparation.user_item_splits import Ints, Ratings
from dlrm_torchrec.raw_values import TextForm, UnfitTypeError
from dlrm_torchrec.schema import MISSING_MARKERS

# the names that public data sets give to the four columns, without capitals, blanks, - and _
NAMES = {
    "user": ("user", "userid", "uid", "reviewerid", "customerid", "visitorid"),
    "item": ("item", "itemid", "movie", "movieid", "asin", "productid", "locationid", "placeid", "artistid", "bookid"),
    "rating": ("rating", "ratings", "score", "stars", "overall"),
    "time": ("time", "timestamp", "date", "datetime", "eventtime", "eventtimestamp", "unixreviewtime", "checkintime"),
}
_FORM = TextForm(missing=MISSING_MARKERS, decimal=".", thousands="")


@dataclass(frozen=True, kw_only=True)
class Interactions:
    """Ratings, whose users and items are ids of their own or places in the texts ``users`` and ``items``."""

    ratings: Ratings  # without ratings, every score is 1; without times, every time is 0
    users: Any = None  # Arrow array of texts
    items: Any = None
    rated: bool
    timed: bool

    def user_values(self, ids: Ints) -> Any:
        """The users (B,) as they are in the file."""
        return pa.array(ids) if self.users is None else self.users.take(pa.array(ids))

    def item_values(self, ids: Ints) -> Any:
        """The items (B,) as they are in the file."""
        return pa.array(ids) if self.items is None else self.items.take(pa.array(ids))


def read_interactions(path: str, form: Form, columns: Mapping[str, str]) -> Interactions:
    """All rows of a file, a folder or a pattern; ``columns`` are those that are not to be found by their ``NAMES``.

    Raises ValueError if there is no user or no item, or names the first row with an unfit value.
    """
    table = whole(path, form)
    found = {part: _find(path, table, part, columns.get(part, "")) for part in NAMES}
    users, user_texts = _ids(path, table, found["user"])
    items, item_texts = _ids(path, table, found["item"])
    scores, times = np.ones(len(users), np.float32), np.zeros(len(users), np.int64)
    if found["rating"]:
        scores = _read(path, table, found["rating"], raw_values.numbers).astype(np.float32)
    if found["time"]:
        times = _read(path, table, found["time"], _times).astype(np.int64)
    return Interactions(
        ratings=Ratings(users=users, items=items, scores=scores, times=times),
        users=user_texts,
        items=item_texts,
        rated=bool(found["rating"]),
        timed=bool(found["time"]),
    )


def _find(path: str, table: Mapping[str, Any], part: str, name: str) -> str:
    plain = {each.lower().translate(str.maketrans("", "", " -_")): each for each in table}
    name = name or next((plain[each] for each in NAMES[part] if each in plain), "")
    if name not in table and (name or part in ("user", "item")):
        raise ValueError(
            f"{path} must have a column of the {part}: got {list(table)}; name it with --{part}, and those of a file "
            "without a header with --columns"
        )
    return name


def _ids(path: str, table: Mapping[str, Any], name: str) -> tuple[Ints, Any]:
    """Whole numbers (N,) as they are, or the places of texts among the distinct texts, and these."""
    values = _values(path, table, name, raw_values.categories)
    if pa.types.is_integer(values.type):
        return values.to_numpy(), None
    coded = values.dictionary_encode()
    return coded.indices.to_numpy().astype(np.int64), coded.dictionary


def _times(values: Any, form: TextForm) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Seconds since 1970; or the numbers as they are if some are no such time, since their order still counts."""
    seconds, bad = raw_values.times(values, form)
    if not bad.any():
        return seconds, bad
    numbers, no_numbers = raw_values.numbers(values, form)
    return (seconds, bad) if no_numbers.any() else (numbers, no_numbers)


def _read(path: str, table: Mapping[str, Any], name: str, read: Any) -> npt.NDArray[np.float64]:
    numbers: npt.NDArray[np.float64] = _values(path, table, name, read)
    return numbers


def _values(path: str, table: Mapping[str, Any], name: str, read: Any) -> Any:
    """The canonical values of a column, all of which must be there."""
    try:
        values, bad = read(table[name], _FORM)
    except UnfitTypeError as error:
        raise ValueError(f"column {name!r} of {path} must hold one value per row: got {error}; convert it") from error
    missing = np.isnan(values) if isinstance(values, np.ndarray) else values.is_null().to_numpy(zero_copy_only=False)
    if (bad | missing).any():
        row = int((bad | missing).argmax())
        raise ValueError(
            f"column {name!r} of {path} must have a fit value in every row: got {table[name][row].as_py()!r} in row "
            f"{row + 1}; repair the file"
        )
    return values
