"""Labels that lie in a second file, joined to the rows by their order or by a key."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from iopath.common.file_io import g_pathmgr

from dlrm_torchrec import raw_values
from dlrm_torchrec.datasets.prepared.files import digest
from dlrm_torchrec.preparation.readers.columns import Columns
from dlrm_torchrec.preparation.readers.lines import count_lines
from dlrm_torchrec.preparation.readers.rows import Checks, Ints, Rows
from dlrm_torchrec.preparation.readers.spans import open_parquet
from dlrm_torchrec.preparation.readers.tables import Form, is_parquet, text_layout, whole


@dataclass(frozen=True, kw_only=True)
class JoinedColumns(Columns):
    """Columns of which some come from a table in memory. Without a ``key``, its rows are those of the file in order."""

    table: Mapping[str, Any] = field(repr=False)
    sha256: str = ""  # of the file of labels
    key: str = ""
    before: int = 0  # number of lines before the first row

    @property
    def names(self) -> list[str]:
        own = [name for name in super().names if name not in self.table or name == self.key]
        return list(dict.fromkeys([*own, *([self.key] if self.key else [])]))

    def rows(self, numbers: Ints, column: Callable[[str], Any], checks: Checks) -> Rows:
        if self.key:
            place = pc.index_in(_texts(column(self.key), self), value_set=self.table[self.key])
        else:
            place = pa.array(numbers - self.before - 1)

        def joined(name: str) -> Any:
            return self.table[name].take(place) if name in self.table and name != self.key else column(name)

        return super().rows(numbers, joined, checks)


def with_labels(columns: Columns, labels: str, path: str, form: Form, *, key: str = "") -> JoinedColumns:
    """The columns with those of the file ``labels``, which are held in memory, for the rows of ``path``.

    Rows are joined by the canonical value of the column ``key`` of both files, or else by their order; a file with
    nothing but values has the main label. Raises ValueError if labels lack, or if it is unclear whose they are.
    """
    spec = columns.spec
    wanted = [label.name for label in spec.labels] + ([spec.weight] if spec.weight else [])
    try:
        table = whole(labels, Form())
    except ValueError:
        table = whole(labels, Form(names=(wanted[0],)))
    lacking = [name for name in (key, wanted[0]) if name and name not in table]
    if lacking:
        raise ValueError(f"labels {labels} must have the column {lacking[0]!r}: got {list(table)}; name another file")
    table = {name: values for name, values in table.items() if name in wanted or name == key}
    before, count = 0, len(table[wanted[0]])
    if key:
        table[key] = _texts(table[key], columns)
        if pc.count_distinct(table[key], mode="all").as_py() < count:
            raise ValueError(f"key {key!r} of {labels} must have a value of its own in each row: got some twice")
    else:
        rows, before = _count_rows(path, form)
        if rows != count:
            raise ValueError(
                f"labels {labels} must have a row for each of the {rows} rows of {path}: got {count}; join them by "
                "--label_key"
            )
    sha256 = digest(labels, lambda _: None)[1]
    return JoinedColumns(**vars(columns), table=table, sha256=sha256, key=key, before=before)


def _texts(values: Any, columns: Columns) -> Any:
    return raw_values.texts(raw_values.categories(values, columns.form)[0])


def _count_rows(path: str, form: Form) -> tuple[int, int]:
    """The number of rows of a file, and of the lines before them."""
    if is_parquet(path):
        with g_pathmgr.open(path, "rb") as file:
            return open_parquet(path, file).metadata.num_rows, 0
    header = text_layout(path, form).header
    return sum(lines for lines, _, _ in count_lines(path)) - header, header
