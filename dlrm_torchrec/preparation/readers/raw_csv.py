"""Reads raw rows of delimited text with a header line, by a ``DatasetSpec``.

A row is one line. A quoted field may hold the separator but no line break, so that an unmatched quote costs one row and
not the rest of the file.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from dlrm_torchrec.preparation.readers.columns import Columns
from dlrm_torchrec.preparation.readers.fields import parse_text, split_line, split_quoted_fields
from dlrm_torchrec.preparation.readers.lines import BLOCK_BYTES, MAX_LINE_BYTES, Lines, read_lines
from dlrm_torchrec.preparation.readers.rows import Checks, Rows
from dlrm_torchrec.preparation.readers.spans import Span


@dataclass(frozen=True, kw_only=True)
class CsvReader:
    """Reads the wanted columns of plain or gzip UTF-8 text. An empty field is missing; a row has its line's number."""

    columns: Columns
    separator: str = ","
    list_separator: str = "|"  # between the values of a multi-hot field
    block_bytes: int = BLOCK_BYTES
    max_line_bytes: int = MAX_LINE_BYTES

    def __post_init__(self) -> None:
        for name in ("separator", "list_separator"):
            value = getattr(self, name)
            if len(value.encode()) != 1 or value in '"\r\n':
                raise ValueError(f"{name} must be one ASCII character other than a quote: got {value!r}; name another")

    @property
    def labelled(self) -> bool:
        return self.columns.labelled

    def __call__(self, path: str, span: Span | None = None) -> Iterator[Rows]:
        header, number = self._header(path)
        for block in read_lines(path, span, block_bytes=self.block_bytes, max_line_bytes=self.max_line_bytes):
            lines = block.select(block.starts < block.ends)
            is_header = lines.numbers == number
            rows = self._rows(lines.select(~is_header), header)
            yield replace(
                rows,
                headers=int(is_header.sum()),
                blanks=len(block) - len(lines),
                raw_bytes=block.raw_bytes,
                damage=block.damage,
            )

    def _header(self, path: str) -> tuple[list[str], int]:
        """The columns of a file and the number of its header, the first line that is not blank; 0 without a header."""
        for block in read_lines(path, block_bytes=self.block_bytes, max_line_bytes=self.max_line_bytes):
            lines = block.select(block.starts < block.ends)
            if len(lines) and not block.damage:
                fields = split_line(lines.text(0), self.separator) or []
                header = [field.decode(errors="replace") for field in fields]
                self.columns.check(path, header)
                return header, int(lines.numbers[0])
        return self.columns.names, 0

    def _rows(self, lines: Lines, header: list[str]) -> Rows:
        checks = Checks(len(lines))
        lines.check(checks, self.max_line_bytes)
        fields, malformed = split_quoted_fields(lines, self.separator, len(header))
        checks.reject(malformed, f"not {len(header)} columns, or unmatched quotes")
        multi_hot = {feature.name for feature in self.columns.spec.sparse if feature.multi_hot}

        def column(name: str) -> Any:
            values, malformed = parse_text(fields, header.index(name))
            checks.reject(malformed, f"{name} is not UTF-8")
            return self._lists(values) if name in multi_hot else values

        rows = self.columns.rows(lines.numbers, column, checks)
        return rows.select(checks.good, rejected=lines.rejected(checks, self.max_line_bytes))

    def _lists(self, values: Any) -> Any:
        """Lists of separated values; an empty text between two separators is null."""
        lists = pc.split_pattern(values, self.list_separator)
        flat = lists.flatten()
        return pa.ListArray.from_arrays(
            lists.offsets, pc.if_else(pc.equal(flat, ""), pa.scalar(None, pa.string()), flat)
        )
