"""Reads raw rows of separated text by a ``DatasetSpec``; DuckDB splits the rows into fields, block by block.

A row is usually a line. A quoted field may hold separators and line breaks; an unmatched quote costs the rows up to the
next one, not the file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any, NamedTuple

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from fsspec.spec import AbstractFileSystem

from dlrm_torchrec.preparation.readers.columns import Columns
from dlrm_torchrec.preparation.readers.lines import BLOCK_BYTES, MAX_LINE_BYTES, Lines, read_lines
from dlrm_torchrec.preparation.readers.rows import Checks, Ints, Rejected, Rows
from dlrm_torchrec.preparation.readers.spans import Span

_LONE_RETURN = "\ue00d"  # stands for a carriage return inside a line, which DuckDB would take for a line end


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How the rows of a text file are written."""

    separator: str  # one or several characters
    names: tuple[str, ...]  # of all columns, in their order
    header: int = 0  # number of the line that names the columns; 0 means that none does

    def __str__(self) -> str:
        named = f"named in line {self.header}" if self.header else "named by the command"
        return f"text with {len(self.names)} columns, {named}, and separator {self.separator!r}"


class Parsed(NamedTuple):
    """The N well-separated rows of a block of lines, and the others."""

    columns: dict[str, Any]  # Arrow arrays (N,)
    first: Ints  # (N,) index of the row's first line, ascending
    end: Ints  # (N,) index after its last line
    rejected: list[tuple[int, int, str]]  # the same two of each other row, and the reason


class _Block(AbstractFileSystem):
    """A file system with one file, a block of text in memory."""

    protocol = "block"
    cachable = False
    data = b""

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        return {"name": path, "size": len(self.data), "type": "file"}

    def open(self, path: str, mode: str = "rb", **_: Any) -> BytesIO:  # noqa: ARG002  # fsspec's parameters
        return BytesIO(self.data)


class Parser:
    """Splits blocks of lines into columns. A worker makes its own: a connection does not outlive a fork."""

    def __init__(self, layout: Layout, wanted: Sequence[str], *, max_line_bytes: int = MAX_LINE_BYTES) -> None:
        self._layout, self._wanted, self._max_line_bytes = layout, list(wanted), max_line_bytes
        self._block = _Block()
        self._database = duckdb.connect(config={"threads": 1})
        self._database.register_filesystem(self._block)
        columns = ", ".join(f"'c{i}': 'VARCHAR'" for i in range(len(layout.names)))
        separator = layout.separator.replace("'", "''")
        self._rows = (
            "FROM read_csv('block://', auto_detect = false, all_varchar = true, header = false, "
            f"columns = {{{columns}}}, delim = '{separator}', quote = '\"', escape = '\"', new_line = '\\n', "
            "store_rejects = true, rejects_limit = 0, parallel = false, "
            f"max_line_size = {2 * max_line_bytes}, buffer_size = {4 * max_line_bytes + 2 * BLOCK_BYTES})"
        )

    def __call__(self, lines: Lines) -> Parsed:
        """The rows of some lines; blank lines between rows are skipped."""
        text = lines.data[lines.starts[0] : lines.ends[-1]].tobytes() if len(lines) else b""
        returns = b"\r" in text
        if returns:
            text = text.replace(b"\r\n", b"\n").replace(b"\r", _LONE_RETURN.encode())
        self._block.data = text
        wanted = ", ".join(f"c{self._layout.names.index(name)}" for name in self._wanted)
        table = self._database.sql(f"SELECT {wanted} {self._rows}").to_arrow_table().combine_chunks()
        rejected = self._rejected(text)
        first, end = self._places(lines, table.num_rows, rejected)
        columns = {}
        for name, column in zip(self._wanted, table.columns, strict=True):
            values = column.chunk(0) if column.num_chunks else pa.array([], pa.string())
            columns[name] = pc.replace_substring(values, _LONE_RETURN, "\r") if returns else values
        return Parsed(columns, first, end, rejected)

    def _rejected(self, text: bytes) -> list[tuple[int, int, str]]:
        found = self._database.sql(
            "SELECT line_byte_position, column_idx, error_type, csv_line FROM reject_errors"
        ).fetchall()
        if not found:
            return []
        self._database.sql("TRUNCATE reject_errors")
        starts = np.append(0, np.flatnonzero(np.frombuffer(text, np.uint8) == ord("\n")) + 1)
        by_line: dict[int, tuple[int, int, str]] = {}
        for position, column, kind, raw in found:
            at = position - 1
            while text[at : at + 1] == b"\n":  # blank lines before it
                at += 1
            line = int(np.searchsorted(starts, at, side="right")) - 1
            end = line + 1 + raw.strip("\n").count("\n")
            by_line.setdefault(line, (line, end, self._reason(kind, column)))
        return sorted(by_line.values())

    def _reason(self, kind: str, column: int | None) -> str:
        if kind == "INVALID ENCODING" and column:
            return f"{self._layout.names[column - 1]} is not UTF-8"
        if kind == "UNQUOTED VALUE":
            return "unmatched quotes"
        if kind == "LINE SIZE OVER MAXIMUM":
            return f"longer than {self._max_line_bytes} bytes"
        return f"not {len(self._layout.names)} columns"

    def _places(self, lines: Lines, rows: int, rejected: list[tuple[int, int, str]]) -> tuple[Ints, Ints]:
        """The indices of the first line of each row, and of the line after it."""
        free = (lines.starts < lines.ends) | (len(self._layout.names) == 1)
        for first, end, _ in rejected:
            free[first:end] = False
        places = np.flatnonzero(free)
        if len(places) == rows:
            return places, places + 1
        texts = "||".join(f"coalesce(c{i}, '')" for i in range(len(self._layout.names)))
        breaks = self._database.sql(f"SELECT length({texts}) - length(replace({texts}, chr(10), '')) {self._rows}")
        heights = 1 + breaks.to_arrow_table()[0].to_numpy().astype(np.int64)
        self._database.sql("TRUNCATE reject_errors")
        ends = {first: end for first, end, _ in rejected}
        at = 0
        for row, height in enumerate(heights.tolist()):
            while not free[at]:
                at = ends.get(at, at + 1)
            places[row] = at
            at += height
        return places[:rows], places[:rows] + heights


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
        parse = Parser(self.layout, self.columns.names, max_line_bytes=self.max_line_bytes)
        for lines in read_lines(
            path, span, block_bytes=self.block_bytes, max_line_bytes=self.max_line_bytes, quoted=True
        ):
            yield self._rows(lines, parse(lines))

    def _rows(self, lines: Lines, parsed: Parsed) -> Rows:
        numbers = lines.numbers[parsed.first]
        checks, of_lines = Checks(len(numbers)), Checks(len(lines))
        lines.check(of_lines, self.max_line_bytes)
        unfit = dict(of_lines.bad())
        for line, reason in unfit.items():
            checks.reject((parsed.first <= line) & (line < parsed.end), reason)
        rows = self.columns.rows(numbers, lambda name: self._column(parsed.columns[name], name), checks)
        is_header = numbers == self.layout.header
        bad = [(int(parsed.first[i]), int(parsed.end[i]), why) for i, why in checks.bad() if not is_header[i]]
        for first, end, reason in parsed.rejected:
            bad.append((first, end, next((unfit[line] for line in range(first, end) if line in unfit), reason)))
        heights = [*(parsed.end - parsed.first), *(end - first for first, end, _ in parsed.rejected)]
        return rows.select(
            checks.good & ~is_header,
            rejected=tuple(
                Rejected(int(lines.numbers[first]), reason, self._raw(lines, first, end))
                for first, end, reason in sorted(bad)
            ),
            headers=int(is_header.sum()),
            blanks=len(lines) - int(sum(heights)),
            raw_bytes=lines.raw_bytes,
            damage=lines.damage,
        )

    def _raw(self, lines: Lines, first: int, end: int) -> bytes:
        return lines.data[lines.starts[first] : lines.ends[end - 1]].tobytes()[: self.max_line_bytes]

    def _column(self, values: Any, name: str) -> Any:
        """The values of a column, as lists of separated values if it is multi-hot; an empty text in a list is null."""
        if name not in self._lists:
            return values
        lists = pc.split_pattern(values, self.list_separator)
        flat = lists.flatten()
        flat = pc.if_else(pc.equal(flat, ""), pa.scalar(None, pa.string()), flat)
        return pa.ListArray.from_arrays(lists.offsets, flat)
