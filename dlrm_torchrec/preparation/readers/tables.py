"""Opens a table of any form: Parquet, or text whose separator and header are told from its first lines."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from iopath.common.file_io import g_pathmgr

from dlrm_torchrec.preparation.readers.columns import Columns
from dlrm_torchrec.preparation.readers.lines import Lines, read_lines
from dlrm_torchrec.preparation.readers.paths import files_of
from dlrm_torchrec.preparation.readers.raw_parquet import ParquetReader
from dlrm_torchrec.preparation.readers.rows import Reader
from dlrm_torchrec.preparation.readers.spans import open_parquet
from dlrm_torchrec.preparation.readers.streams import PARQUET_MAGIC, first_bytes
from dlrm_torchrec.preparation.readers.text import libsvm
from dlrm_torchrec.preparation.readers.text.layout import Layout
from dlrm_torchrec.preparation.readers.text.reader import TextReader, parser
from dlrm_torchrec.preparation.readers.text.separated import Separated
from dlrm_torchrec.raw_values import NUMBER

_ALL = 1 << 62  # rows
_SAMPLE_BYTES = 1 << 16
_JSON = re.compile(r'\s*\[?\s*\{\s*("|$)|\s*\[\s*$')  # how a line of objects begins, or of a list of them
_SEPARATORS = ("\t", "::", ";", ",", "|", " ")  # the first one that fits is taken
_SAME_SHARES = (0.9, 0.5)  # of the rows of a sample that have as many fields as the first; many, if any separator fits


@dataclass(frozen=True, kw_only=True)
class Form:
    """What a person says about text files; nothing is needed for Parquet."""

    separator: str = ""  # one or several characters; \\t is a tab; empty means that the first lines tell
    names: tuple[str, ...] = ()  # of all columns of files without a header line; empty means that the first line tells

    def __post_init__(self) -> None:
        object.__setattr__(self, "separator", self.separator.replace("\\t", "\t"))
        if set(self.separator) & set('"\r\n') or len(self.separator.encode()) > 4:
            raise ValueError(
                f"separator must be at most 4 bytes without quotes and line ends: got {self.separator!r}; name another"
            )


def table_reader(path: str, columns: Columns, form: Form) -> Reader:
    """The reader of one file. Raises ValueError if it lacks a column, or if its form cannot be told."""
    if is_parquet(path):
        with g_pathmgr.open(path, "rb") as file:
            columns.check(path, open_parquet(path, file).schema_arrow.names)
        return ParquetReader(columns=columns)
    layout = text_layout(path, form)
    columns.check(path, list(layout.names))
    return TextReader(columns=columns, layout=layout)


def head(path: str, form: Form, rows: int) -> dict[str, Any]:
    """About the first ``rows`` rows of files as Arrow arrays by raw column, in the order of the columns.

    ``path`` is a file, a folder or a pattern. Text stays text, null where a field is empty; Parquet keeps its types.
    Rows that have another number of fields are left out. Raises ValueError if there are no rows, or if the form cannot
    be told.
    """
    pieces: list[pa.Table] = []
    for piece, _ in (each for file in files_of(path) for each in _pieces(file, form, rows)):
        pieces.append(piece)
        if sum(each.num_rows for each in pieces) >= rows:
            break
    return _columns(path, pieces, rows)


def whole(path: str, form: Form) -> dict[str, Any]:
    """``head`` of all rows. Raises ValueError at the first row that has another number of fields."""
    pieces = []
    for file in files_of(path):
        for piece, malformed in _pieces(file, form, _ALL):
            if malformed:
                raise ValueError(f"{file} must hold rows like its first one: got {malformed}; repair the file")
            pieces.append(piece)
    return _columns(path, pieces, _ALL)


def first_with_rows(paths: Sequence[str], form: Form) -> str:
    """The first file of ``paths`` that has rows. Raises ValueError if none has, or if a form cannot be told."""
    for path in paths:
        if any(piece.num_rows for piece, _ in _pieces(path, form, 1)):
            return path
    raise ValueError(f"one of the files must have rows: got none in {', '.join(paths[:5])}; name others")


def is_blank(path: str) -> bool:
    """Whether a file has no lines, or only empty ones."""
    return not is_parquet(path) and _first_lines(path) is None


def is_parquet(path: str) -> bool:
    """Whether a file is Parquet, by its first bytes."""
    return first_bytes(path).startswith(PARQUET_MAGIC)


def text_layout(path: str, form: Form) -> Layout:
    """The separator and the columns of a text file, said or told from its first lines."""
    first = _first_lines(path)
    if first is None:
        return Layout(separator=form.separator or ",", names=form.names or ("",))
    sample = b"\n".join(first.text(i) for i in range(len(first))).decode(errors="replace")
    if not form.separator and _JSON.match(sample.split("\n", 1)[0]):
        raise ValueError(
            f"file {path} must be Parquet, or text with separators: got JSON, {sample[:80]!r}; convert rows to Parquet "
            "with pyarrow.json.read_json and pyarrow.parquet.write_table, or name the tables in place of their folder"
        )
    if not form.separator and libsvm.is_libsvm(sample):
        return Layout(separator=" ", names=form.names or libsvm.NAMES, libsvm=True)
    separator = form.separator or _separator(path, sample)
    rows = _fields(first, _widths(sample, separator)[0], separator)
    if not rows:
        raise ValueError(
            f"first line of {path} must be a row of text: got {sample[:80]!r}; name the tables in place of their folder"
        )
    names = tuple(name.strip() for name in rows[0])
    if form.names and names != form.names:
        if len(names) != len(form.names):
            raise ValueError(
                f"columns must name each of the {len(names)} columns of {path}: got {len(form.names)} names; correct "
                "them or name the separator"
            )
        return Layout(separator=separator, names=form.names)
    if not form.names and not _is_header(names, rows[1:]):
        raise ValueError(
            f"first line of {path} must name the columns: got {list(names)[:8]}, which may be values; name the columns "
            "of a file without a header, for example --columns label user item"
        )
    names = tuple(name or f"column {i}" for i, name in enumerate(names, 1))
    return Layout(separator=separator, names=names, header=int(first.numbers[0]))


def _pieces(path: str, form: Form, rows: int) -> Iterator[tuple[pa.Table, str]]:
    """The rows piece by piece, each with the line and the reason of its first malformed row, if there is one."""
    if is_parquet(path):
        with g_pathmgr.open(path, "rb") as file:
            for batch in open_parquet(path, file).iter_batches(min(rows, 1 << 16), use_threads=False):
                yield pa.Table.from_batches([batch]), ""
        return
    layout = text_layout(path, form)
    if len(set(layout.names)) < len(layout.names):
        raise ValueError(f"{path} must have distinct column names: got {list(layout.names)}; rename some")
    parse = parser(layout, layout.names)
    for lines in read_lines(path, quoted=not layout.libsvm):
        parsed = parse(lines)
        first = next((f"one in line {lines.numbers[line]} with {why}" for line, _, why in parsed.rejected), "")
        yield pa.table(parsed.columns).filter(pa.array(lines.numbers[parsed.first] != layout.header)), first


def _columns(path: str, pieces: Sequence[pa.Table], rows: int) -> dict[str, Any]:
    if not sum(piece.num_rows for piece in pieces):
        raise ValueError(f"file {path} must have rows: got none; name another")
    try:
        table = pa.concat_tables(pieces, promote_options="permissive").slice(0, rows).combine_chunks()
    except pa.ArrowException as error:
        raise ValueError(f"files of {path} must have the same columns: got {error}; prepare them alone") from error
    return {name: column.combine_chunks() for name, column in zip(table.column_names, table.columns, strict=True)}


def _first_lines(path: str) -> Lines | None:
    """Those of a text file from the first one on that is not empty; None if there is none."""
    first = next(read_lines(path, block_bytes=_SAMPLE_BYTES, quoted=True), None)
    at = next((i for i in range(len(first)) if first.starts[i] < first.ends[i]), None) if first else None
    return None if first is None or at is None else first.select(slice(at, None))


def _fields(lines: Lines, width: int, separator: str) -> list[list[str]]:
    """The fields of the rows that have ``width`` of them."""
    names = tuple(map(str, range(width)))
    columns = Separated(Layout(separator=separator, names=names), names)(lines).columns
    rows = zip(*(column.to_pylist() for column in columns.values()), strict=True)
    return [[value or "" for value in row] for row in rows]


def _widths(sample: str, separator: str) -> list[int]:
    """How many fields each row has."""
    rows = re.sub('"[^"]*"', "x", sample).split("\n")
    return [row.count(separator) + 1 for row in rows if row]


def _separator(path: str, sample: str) -> str:
    for share in _SAME_SHARES:
        for separator in _SEPARATORS:
            first, *others = _widths(sample, separator)
            if first > 1 and Counter(others)[first] >= share * len(others):
                return separator
    if not any(separator in sample for separator in _SEPARATORS):
        return _SEPARATORS[0]  # a single column
    raise ValueError(f"separator of {path} must be told by its first lines: got {sample[:80]!r}; name it")


def _is_header(names: Sequence[str], rows: Sequence[Sequence[str]]) -> bool:
    """Whether a first line names columns: its fields are distinct texts, and none comes again below."""
    if len(set(names)) < len(names) or any(re.match(NUMBER, name) for name in names):
        return False
    below = [set(column) for column in zip(*(row for row in rows if [*row] != [*names]), strict=True)]
    return not any(name and name in column for name, column in zip(names, below, strict=False))
