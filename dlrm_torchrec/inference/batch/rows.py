"""The raw columns of a Parquet, CSV or JSON file, part by part, from any row on."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from dlrm_torchrec.raw_values import split_lists

READ_ROWS = 8192  # of Parquet or JSON at once
JSON_LINES = (".jsonl", ".ndjson")
BLOCK_BYTES = 4 << 20  # of CSV at once
COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd", ".lz4": "lz4"}  # of CSV, by the end of a name


class Rows(Protocol):
    """The rows of a file with the columns that were asked for."""

    num_rows: int | None  # of the file; None until something was read, if nothing tells it
    is_estimated: bool  # whether this number follows from the bytes that were read so far

    def batches(self, start: int) -> Iterator[pa.RecordBatch]:
        """Batches of any sizes, from row ``start`` on."""


@dataclass(frozen=True, kw_only=True)
class CsvForm:
    """How a CSV file is written."""

    separator: str = ","
    list_separator: str = "|"  # between the values of a list
    missing: tuple[str, ...] = ("",)  # texts that mean a missing value, in place of a list an empty one

    @property
    def cure(self) -> str:
        """What to do if a file has other columns than it should."""
        return f"columns were cut at {self.separator!r}: name another with --separator, or another file"


def open_rows(path: Path, columns: Sequence[str], lists: Collection[str], form: CsvForm) -> Rows:
    """The rows of a Parquet file, of JSON lines (.jsonl, .ndjson), or of a CSV file with a header.

    Raises ValueError when the file is none of them, or lacks one of ``columns``. In CSV, all values are texts, and a
    value of one of ``lists`` is a list.
    """
    if path.suffix in JSON_LINES:
        return JsonRows(path, columns)
    with path.open("rb") as file:
        is_parquet = file.read(4) == b"PAR1"
    try:
        return ParquetRows(path, columns) if is_parquet else CsvRows(path, columns, lists, form)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        cure = "name another" if is_parquet else form.cure
        raise ValueError(
            f"{path} must be a Parquet file, or a CSV file with a header: got {one_line(error)}; {cure}"
        ) from error


def one_line(error: Exception) -> str:
    """What an error of Arrow says, without the line breaks of the text that it quotes."""
    return " ".join(str(error).split())


class ParquetRows:
    """The rows of a Parquet file."""

    is_estimated = False

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self.path = path
        with pq.ParquetFile(path) as file:
            _check_names(path, file.schema_arrow.names, columns, "name another file, or rename its columns")
            self.groups = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        self.columns = list(columns)
        self.num_rows: int | None = sum(self.groups)

    def batches(self, start: int) -> Iterator[pa.RecordBatch]:
        group, skip = 0, start
        while group < len(self.groups) and skip >= self.groups[group]:
            skip -= self.groups[group]
            group += 1
        with pq.ParquetFile(self.path) as file:
            left = list(range(group, len(self.groups)))
            for batch in file.iter_batches(READ_ROWS, row_groups=left, columns=self.columns) if left else ():
                if skip < batch.num_rows:
                    yield batch[skip:].select(self.columns)
                skip = max(0, skip - batch.num_rows)


class JsonRows:
    """The rows of a file with a JSON object on each line; those before a later row are read again to reach it."""

    is_estimated = False

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self.path, self.columns = path, list(columns)
        self.num_rows: int | None = None

    def batches(self, start: int) -> Iterator[pa.RecordBatch]:
        number = 0
        with self.path.open(encoding="utf-8") as file:
            while lines := list(islice(file, READ_ROWS)):
                rows = [self._row(line, number + place) for place, line in enumerate(lines)]
                skip, number = max(0, start - number), number + len(rows)
                if skip < len(rows):
                    values = [pa.array([row[name] for row in rows[skip:]]) for name in self.columns]
                    yield pa.record_batch(values, self.columns)
        self.num_rows = number

    def _row(self, line: str, number: int) -> dict[str, Any]:
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise TypeError(type(row).__name__)
            absent = [name for name in self.columns if name not in row]
        except (ValueError, TypeError, RecursionError) as error:
            raise ValueError(
                f"{self.path} must have a JSON object on each line: got {error!r} in row {number}, counted from 0; "
                "correct it"
            ) from error
        if absent:
            raise ValueError(
                f"{self.path} must have each column of the package: got none of {absent[0]!r} in row {number}, counted "
                "from 0; add it, with null for a missing value"
            )
        found: dict[str, Any] = row
        return found


class CsvRows:
    """The rows of a CSV file, as texts; the start of the file is read again to reach a later row."""

    def __init__(self, path: Path, columns: Sequence[str], lists: Collection[str], form: CsvForm) -> None:
        self.path, self.columns, self.lists, self.form = path, list(columns), lists, form
        self.num_rows: int | None = None
        self.is_estimated = True
        self._compression = COMPRESSIONS.get(path.suffix)
        with path.open("rb") as file, self._open(file, None) as reader:
            _check_names(path, reader.schema.names, columns, form.cure)

    def batches(self, start: int) -> Iterator[pa.RecordBatch]:
        read, size = 0, self.path.stat().st_size
        with self.path.open("rb") as file, self._open(file, self.columns) as reader:
            for batch in reader:
                skip, read = max(0, start - read), read + batch.num_rows
                self.num_rows = round(read * size / file.tell())
                if skip < batch.num_rows:
                    columns = [self._column(batch[name][skip:], name) for name in self.columns]
                    yield pa.record_batch(columns, self.columns)
        self.num_rows, self.is_estimated = read, False

    def _open(self, file: BinaryIO, columns: list[str] | None) -> Any:
        texts = dict.fromkeys(columns or (), pa.string())
        return pacsv.open_csv(
            pa.input_stream(file, compression=self._compression),
            pacsv.ReadOptions(use_threads=False, block_size=BLOCK_BYTES),
            pacsv.ParseOptions(delimiter=self.form.separator, newlines_in_values=True),
            pacsv.ConvertOptions(column_types=texts, include_columns=columns, strings_can_be_null=False),
        )

    def _column(self, values: pa.Array, name: str) -> pa.Array:
        form = self.form
        return split_lists(values, form.list_separator, form.missing) if name in self.lists else values


def _check_names(path: Path, names: Sequence[str], columns: Sequence[str], cure: str) -> None:
    absent = [name for name in columns if list(names).count(name) != 1]
    if absent:
        raise ValueError(
            f"{path} must have each column of the package once: got {list(names).count(absent[0])} of {absent[0]!r}; "
            f"{cure}"
        )
