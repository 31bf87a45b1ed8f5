"""Splits blocks of separated text into columns, by DuckDB.

A row is usually a line. A quoted field may hold separators and line breaks; an unmatched quote costs the rows up to the
next one, not the file.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from io import BytesIO
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from fsspec.spec import AbstractFileSystem

from dlrm_torchrec.preparation.readers.lines import BLOCK_BYTES, MAX_LINE_BYTES, Lines
from dlrm_torchrec.preparation.readers.rows import Ints
from dlrm_torchrec.preparation.readers.text.layout import Layout, Parsed

_LONE_RETURN = "\ue00d"  # stands for a carriage return inside a line, which DuckDB would take for a line end
_END = "\ue00e"  # a last field of every line: DuckDB would overlook empty fields after the last column


class _Block(AbstractFileSystem):
    """A file system with one file, a block of text in memory."""

    protocol = "block"
    cachable = False
    data = b""

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        return {"name": path, "size": len(self.data), "type": "file"}

    def open(self, path: str, mode: str = "rb", **_: Any) -> BytesIO:  # noqa: ARG002  # fsspec's parameters
        return BytesIO(self.data)


class Separated:
    """Splits blocks of lines into columns. A worker makes its own: a connection does not outlive a fork."""

    def __init__(self, layout: Layout, wanted: Sequence[str], *, max_line_bytes: int = MAX_LINE_BYTES) -> None:
        import duckdb  # a tenth of a second, which Criteo's files need not wait for

        self._layout, self._wanted, self._max_line_bytes = layout, list(wanted), max_line_bytes
        self._block = _Block()
        self._database = duckdb.connect(config={"threads": 1})
        self._database.register_filesystem(self._block)
        self._mark = layout.separator + _END
        columns = ", ".join(f"'c{i}': 'VARCHAR'" for i in range(len(layout.names) + 1))
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
        stand_ins = {self._mark + "\n": "\n"} if b'"' in text else {}
        if b"\r" in text:
            text = text.replace(b"\r\n", b"\n").replace(b"\r", _LONE_RETURN.encode())
            stand_ins[_LONE_RETURN] = "\r"
        mark = self._mark.encode()
        text = text.replace(b"\n", mark + b"\n") + mark if len(lines) else b""
        if len(self._layout.names) > 1 and (lines.starts == lines.ends).any():
            text = re.sub(b"^" + re.escape(mark) + b"$", b"", text, flags=re.MULTILINE)
        self._block.data = text
        wanted = ", ".join(f"c{self._layout.names.index(name)}" for name in self._wanted)
        table = self._database.sql(f"SELECT {wanted} {self._rows}").to_arrow_table().combine_chunks()
        rejected = self._rejected(text)
        first, end = self._places(lines, table.num_rows, rejected)
        columns = {}
        for name, column in zip(self._wanted, table.columns, strict=True):
            values = column.chunk(0) if column.num_chunks else pa.array([], pa.string())
            for stand_in, meant in stand_ins.items():
                values = pc.replace_substring(values, stand_in, meant)
            columns[name] = values
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
