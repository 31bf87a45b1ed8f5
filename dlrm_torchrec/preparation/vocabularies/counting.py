"""Counts how often each category of a table occurs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dlrm_torchrec.preparation.vocabularies.int_tables import count_values, move_counts
from dlrm_torchrec.raw_values import kinds

_FIRST_SLOTS = 1 << 10


class ValueCounter:
    """Counts the categories of one table, whole numbers apart from texts, piece by piece."""

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._numbers, self._texts = IntCounter(), TextCounter()

    def add(self, values: Any) -> None:
        """Count an Arrow array of canonical categories, without nulls."""
        if pa.types.is_integer(values.type):
            self._numbers.add(values.drop_null())
            return
        numbers, texts = kinds(values)
        self._numbers.add(numbers.drop_null())
        self._texts.add(texts.drop_null())

    @property
    def nbytes(self) -> int:
        return self._numbers.nbytes + self._texts.nbytes

    def take(self) -> dict[str, pa.Table]:
        """Tables of the distinct values so far, ascending, with counts: ``value``, ``count``; counting restarts.

        The keys are ``numbers`` and ``texts``; a kind without values is absent.
        """
        tables = {"numbers": self._numbers.table(), "texts": self._texts.table()}
        self._begin()
        return {kind: table for kind, table in tables.items() if len(table)}


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
        # the first has no repetition; each other one is of a single piece
        self._known = [pa.table({"value": pa.array([], pa.string()), "count": pa.array([], pa.int64())})]
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
    """The distinct values in ascending order (text by its UTF-8 bytes), each with the sum of its counts.

    Of any other column, which holds numbers, each value has its greatest entry.
    """
    how = {name: "sum" if name == "count" else "max" for name in table.column_names if name != "value"}
    if not pa.types.is_integer(table.schema.field("value").type):
        summed = table.group_by("value", use_threads=False).aggregate(list(how.items()))
        renamed = summed.select(["value", *(f"{name}_{each}" for name, each in how.items())])
        return renamed.rename_columns(["value", *how]).sort_by("value").combine_chunks()
    values = table["value"].to_numpy()
    order = np.argsort(values, kind="stable")  # fast if the table consists of sorted runs
    values = values[order]
    first = np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]])[: len(values)])
    columns = {"value": values[first]}
    for name, each in how.items():
        reduce = np.add if each == "sum" else np.maximum
        numbers = table[name].to_numpy()[order]
        columns[name] = reduce.reduceat(numbers, first) if len(first) else numbers
    return pa.table(columns)
