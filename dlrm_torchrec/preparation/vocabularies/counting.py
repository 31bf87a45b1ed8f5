"""Counts how often each raw value of a feature occurs."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dlrm_torchrec.preparation.vocabularies.int_tables import count_values, move_counts

_FIRST_SLOTS = 1 << 10


class Counter(Protocol):
    """Counts values of one type; ``nbytes`` is about the memory that it uses."""

    def add(self, values: Any) -> None: ...

    @property
    def nbytes(self) -> int: ...

    def table(self) -> pa.Table:
        """The columns ``value``, distinct and ascending, and ``count``, int64."""
        ...


class ValueCounter:
    """Counts the values of one feature, int64 or text, piece by piece."""

    def __init__(self) -> None:
        self._counter: Counter | None = None
        self._type: Any = None

    def add(self, values: Any) -> None:
        """Count the values of an Arrow array, without nulls."""
        if self._counter is None:
            self._type = values.type
            self._counter = IntCounter() if pa.types.is_integer(values.type) else TextCounter()
        check_types([self._type, values.type])
        self._counter.add(values.drop_null())

    @property
    def nbytes(self) -> int:
        return self._counter.nbytes if self._counter else 0

    def take(self) -> pa.Table:
        """The distinct values in ascending order with their counts, ``value`` and ``count``; counting restarts."""
        counter, self._counter = self._counter, None
        return counter.table() if counter else pa.table({"value": [], "count": []})


def check_types(types: list[Any]) -> None:
    """Raises ValueError when the values of one feature have several types."""
    if len(set(types)) > 1:
        raise ValueError(
            f"a column must have one type in all files: got {sorted({str(kind) for kind in types})}; "
            "convert the files to one type"
        )


class IntCounter:
    """Counts int64 in a hash table."""

    def __init__(self) -> None:
        self._keys, self._counts = np.empty(_FIRST_SLOTS, np.int64), np.zeros(_FIRST_SLOTS, np.int64)
        self._taken = 0

    def add(self, values: Any) -> None:
        left = values.to_numpy()
        while len(left):
            done, self._taken = count_values(left, self._keys, self._counts, self._taken)
            left = left[done:]
            if len(left):
                slots = 2 * len(self._keys)
                keys, counts = np.empty(slots, np.int64), np.zeros(slots, np.int64)
                move_counts(self._keys, self._counts, keys, counts)
                self._keys, self._counts = keys, counts

    @property
    def nbytes(self) -> int:
        return self._keys.nbytes + self._counts.nbytes

    def table(self) -> pa.Table:
        taken = self._counts > 0
        values, counts = self._keys[taken], self._counts[taken]
        order = np.argsort(values)
        return pa.table({"value": values[order], "count": counts[order]})


class TextCounter:
    """Counts strings. The distinct strings of new pieces are joined when they outgrow the strings known before."""

    def __init__(self) -> None:
        self._known: list[pa.Table] = []  # the first has no repetition; each other one is of a single piece
        self._new_rows = 0

    def add(self, values: Any) -> None:
        counts = pc.value_counts(values)
        self._known.append(pa.table({"value": counts.field("values"), "count": counts.field("counts")}))
        self._new_rows += len(counts)
        # Joining only when the new strings outgrow the old ones takes O(n log n) time for any number of pieces.
        if self._new_rows > max(len(self._known[0]), 1 << 16):
            self._known, self._new_rows = [sum_counts(pa.concat_tables(self._known))], 0

    @property
    def nbytes(self) -> int:
        return sum(int(table.nbytes) for table in self._known)

    def table(self) -> pa.Table:
        return sum_counts(pa.concat_tables(self._known))


def sum_counts(table: pa.Table) -> pa.Table:
    """The distinct values in ascending order (text by its UTF-8 bytes), each with the sum of its counts."""
    if not pa.types.is_integer(table.schema.field("value").type):
        summed = table.group_by("value", use_threads=False).aggregate([("count", "sum")])
        renamed = summed.select(["value", "count_sum"]).rename_columns(["value", "count"])
        return renamed.sort_by("value").combine_chunks()
    values, counts = table["value"].to_numpy(), table["count"].to_numpy()
    order = np.argsort(values, kind="stable")  # fast if the table consists of sorted runs
    values, counts = values[order], counts[order]
    first = np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]])[: len(values)])
    return pa.table({"value": values[first], "count": np.add.reduceat(counts, first) if len(first) else counts})
