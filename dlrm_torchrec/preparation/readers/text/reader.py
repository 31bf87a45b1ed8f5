"""Reads raw rows of text by a ``DatasetSpec``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa

from dlrm_torchrec import raw_values
from dlrm_torchrec.preparation.readers.columns import Columns
from dlrm_torchrec.preparation.readers.lines import BLOCK_BYTES, MAX_LINE_BYTES, Lines, read_lines
from dlrm_torchrec.preparation.readers.rows import Checks, Rejected, Rows
from dlrm_torchrec.preparation.readers.spans import Span
from dlrm_torchrec.preparation.readers.text.layout import Layout, Parsed
from dlrm_torchrec.preparation.readers.text.libsvm import parse_libsvm
from dlrm_torchrec.preparation.readers.text.separated import Separated


def parser(layout: Layout, wanted: Sequence[str], *, max_line_bytes: int = MAX_LINE_BYTES) -> Callable[[Lines], Parsed]:
    """What splits blocks of lines into the ``wanted`` columns."""
    if layout.libsvm:
        return partial(parse_libsvm, names=layout.names)
    return Separated(layout, wanted, max_line_bytes=max_line_bytes)


@dataclass(frozen=True, kw_only=True)
class TextReader:
    """Reads the wanted columns of text. An empty field is missing; a row has the number of its first line."""

    columns: Columns
    layout: Layout
    list_separator: str = "|"  # between the values of a multi-hot field
    block_bytes: int = BLOCK_BYTES
    max_line_bytes: int = MAX_LINE_BYTES

    @property
    def labelled(self) -> bool:
        return self.columns.labelled

    @property
    def _lists(self) -> set[str]:
        bags = [feature for feature in self.columns.spec.sparse if feature.multi_hot]
        return {name for feature in bags for name in (feature.raw, feature.weights)}

    def __call__(self, path: str, span: Span | None = None) -> Iterator[Rows]:
        wanted, quoted = self.columns.names, not self.layout.libsvm
        parse = parser(self.layout, wanted, max_line_bytes=self.max_line_bytes)
        for lines in read_lines(
            path, span, block_bytes=self.block_bytes, max_line_bytes=self.max_line_bytes, quoted=quoted
        ):
            yield self._rows(lines, parse(lines))

    def _rows(self, lines: Lines, parsed: Parsed) -> Rows:
        heights = int((parsed.end - parsed.first).sum()) + sum(end - first for first, end, _ in parsed.rejected)
        is_header = lines.numbers[parsed.first] == self.layout.header
        if is_header.any():
            parsed = parsed.select(~is_header)
        numbers = lines.numbers[parsed.first]
        checks, of_lines = Checks(len(numbers)), Checks(len(lines))
        lines.check(of_lines, self.max_line_bytes)
        unfit = dict(of_lines.bad())
        for line, reason in unfit.items():
            checks.reject((parsed.first <= line) & (line < parsed.end), reason)
        rows = self.columns.rows(numbers, lambda name: self._column(parsed.columns[name], name), checks)
        bad = [(int(parsed.first[i]), int(parsed.end[i]), reason) for i, reason in checks.bad()]
        for first, end, reason in parsed.rejected:
            bad.append((first, end, next((unfit[line] for line in range(first, end) if line in unfit), reason)))
        return rows.select(
            checks.good,
            rejected=tuple(
                Rejected(int(lines.numbers[first]), reason, self._raw(lines, first, end))
                for first, end, reason in sorted(bad)
            ),
            headers=int(is_header.sum()),
            blanks=len(lines) - heights,
            raw_bytes=lines.raw_bytes,
            damage=lines.damage,
        )

    def _raw(self, lines: Lines, first: int, end: int) -> bytes:
        return lines.data[lines.starts[first] : lines.ends[end - 1]].tobytes()[: self.max_line_bytes]

    def _column(self, values: Any, name: str) -> Any:
        """The values of a column, as lists of separated values if it is multi-hot; a missing text is an empty list."""
        if name not in self._lists or not pa.types.is_string(values.type):
            return values
        return raw_values.split_lists(values, self.list_separator, self.columns.form.missing)
