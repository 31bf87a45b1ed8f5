"""What points are coloured by: how often values were seen, or a column of a file."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
from pyarrow import types

from dlrm_torchrec.cli.vectors.counts import Counts
from dlrm_torchrec.cli.vectors.values import Values
from dlrm_torchrec.raw_values import TextForm, categories

COLOURS = 8  # of the pages; the last one, grey, is for other kinds if there are more
OTHERS = "others"


@dataclass(frozen=True)
class Colouring:
    """A colour for each of N points: a kind, or a place from 0 to 1 on a scale.

    ``numbers`` holds the number of each point's kind, or its place; None means that it has none.
    """

    title: str
    texts: list[str]  # what to say of each point
    numbers: list[float | None]
    kinds: list[str]  # empty for a scale
    ends: tuple[str, str] = ("", "")  # of a scale


def by_frequency(values: Values, counts: Counts | None, ids: Sequence[int]) -> Colouring:
    """Logarithms of counts; without them of ranks, where ids are in the order of frequency, else nothing."""
    if counts is not None:
        times = [int(counts.times[id]) for id in ids]
        return _scale("times seen in training", [math.log(max(1, each)) for each in times], [f"{t:,}" for t in times])
    if values.by_frequency:
        ranks = range(1, len(ids) + 1)
        return _scale("rank by frequency", [-math.log(rank) for rank in ranks], [f"{rank:,}" for rank in ranks])
    return Colouring("", [""] * len(ids), [0] * len(ids), [values.feature.name])


def by_file(path: str, values: Values, ids: Sequence[int]) -> Colouring:
    """The second column of a CSV or Parquet file; its first one has values as ``Values.name`` has them.

    Numbers become a scale if they have more values than there are colours. Else the most frequent values are kinds.
    Raises ValueError when the file has fewer than two columns, or none of the values.
    """
    keys, column, title = _columns(path, values.form)
    given = dict(zip(keys, column.to_pylist(), strict=True))
    found = [given.get(values.name(id)) for id in ids]
    if all(each is None for each in found):
        raise ValueError(
            f"first column of {path} must have values of feature {values.feature.name!r}, such as "
            f"{', '.join(values.name(id) for id in ids[:3])}: got {', '.join(map(str, keys[:3]))}; correct it"
        )
    present = [each for each in found if each is not None]
    if _is_number(column.type) and len(set(present)) > COLOURS:
        return _scale(title, found, ["" if each is None else f"{each:g}" for each in found])
    texts = ["" if each is None else str(each) for each in found]
    often = [kind for kind, _ in Counter(filter(None, texts)).most_common()]
    kinds = often if len(often) <= COLOURS else [*often[: COLOURS - 1], OTHERS]
    numbers = {kind: min(number, COLOURS - 1) for number, kind in enumerate(often)}
    return Colouring(title, texts, [numbers.get(text) for text in texts], kinds)


def _scale(title: str, amounts: Sequence[float | None], texts: list[str]) -> Colouring:
    present = [each for each in amounts if each is not None]
    low, high = min(present), max(present)
    numbers = [None if each is None else (each - low) / ((high - low) or 1) for each in amounts]
    ends = texts[amounts.index(low)], texts[amounts.index(high)]
    return Colouring(title, texts, numbers, [], ends)


def _columns(path: str, form: TextForm) -> tuple[list[str], Any, str]:
    """The values in the first column, the second column, and its name."""
    if Path(path).suffix == ".parquet":
        table = pq.read_table(path)
    else:
        with pacsv.open_csv(path) as opened:
            first = opened.schema.names[0]
        # as text, because the type that is guessed would drop zeros before a number
        table = pacsv.read_csv(path, convert_options=pacsv.ConvertOptions(column_types={first: pa.string()}))
    if table.num_columns < 2:
        raise ValueError(f"{path} must have a column of values and one to colour them by: got {table.column_names}")
    first, second = table.columns[0].combine_chunks(), table.columns[1].combine_chunks()
    keys, _ = categories(first, form)
    return keys.cast(pa.string()).to_pylist(), second, table.column_names[1]


def _is_number(kind: Any) -> bool:
    return bool(types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind))
