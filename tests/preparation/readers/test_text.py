"""Text of every form is read as Python's csv module reads it, with the right lines."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import lzma
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from dlrm_torchrec.preparation.readers.columns import Columns
from dlrm_torchrec.preparation.readers.lines import count_lines
from dlrm_torchrec.preparation.readers.paths import files_of
from dlrm_torchrec.preparation.readers.spans import cut, number
from dlrm_torchrec.preparation.readers.tables import Form, head, table_reader, text_layout
from dlrm_torchrec.preparation.readers.text.reader import TextReader
from dlrm_torchrec.schema import DatasetSpec, DenseFeature, SparseFeature

NAMES = ("label", "price", "city", "note")
SPEC = DatasetSpec(
    name="log",
    label="label",
    dense=(DenseFeature(name="price"),),
    sparse=(SparseFeature(name="city", rows=9, encoding="hash"), SparseFeature(name="note", rows=9, encoding="hash")),
)
PIECES = ["a", "ż", " ", ",", ";", "\t", '"', "\n", "\r", "\r\n", "::", "|", "0"]


def table_of(rng: np.random.Generator, rows: int) -> list[list[str]]:
    """Rows whose texts hold everything that needs quotes; no text is empty or has blanks around it."""
    texts = ["".join(rng.choice(PIECES, rng.integers(0, 6))) for _ in range(2 * rows)]
    return [
        [str(rng.integers(2)), f"{rng.normal():.3f}", f"x{texts[2 * i]}x", f"y{texts[2 * i + 1]}y"] for i in range(rows)
    ]


def written(rows: list[list[str]], separator: str = ",", end: str = "\n") -> str:
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter=separator[0], lineterminator=end)
    if len(separator) == 1:
        writer.writerows(rows)
        return out.getvalue()
    quoted = [['"' + cell.replace('"', '""') + '"' for cell in row] for row in rows]
    return "".join(separator.join(row) + end for row in quoted)


def lines_of(rows: list[list[str]], separator: str = ",") -> list[int]:
    """The line at which each row begins."""
    heights = [written([row], separator).count("\n") for row in rows]
    return [1 + sum(heights[:i]) for i in range(len(rows))]


def read(path: Path, form: Form, *, unit_bytes: int = 1 << 30, block_bytes: int = 1 << 20) -> tuple[Any, ...]:
    """Numbers, texts, quarantined rows, blanks and headers of a file that is read in spans."""
    columns = Columns(spec=SPEC, also=("city", "note"))
    reader = table_reader(str(path), columns, form)
    assert isinstance(reader, TextReader)
    reader = TextReader(columns=columns, layout=reader.layout, block_bytes=block_bytes)
    spans = cut(str(path), unit_bytes)
    counted = [list(count_lines(str(path), span)) for span in spans]
    counts = [(sum(lines for lines, _, _ in parts), sum(quotes for _, quotes, _ in parts)) for parts in counted]
    pieces = [rows for span in number(spans, counts, quoted=True) for rows in reader(str(path), span)]
    texts = [list(zip(*(p.also[name].to_pylist() for name in ("city", "note")), strict=True)) for p in pieces]
    return (
        [int(n) for p in pieces for n in p.numbers],
        [list(pair) for piece in texts for pair in piece],
        [tuple(each) for p in pieces for each in p.rejected],
        sum(p.blanks for p in pieces),
        sum(p.headers for p in pieces),
    )


@pytest.mark.parametrize("seed", range(12))
def test_rows_and_lines_equal_those_that_were_written(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    separator, end = (str(rng.choice(choices)) for choices in ([",", "\t", ";", "::"], ["\n", "\r\n"]))
    rows = [list(NAMES), *table_of(rng, 60)]
    path = tmp_path / "log"
    path.write_bytes(written(rows, separator, end).encode("utf-8"))
    # the csv module ends rows by what a text has between its lines, too, if quoted
    numbers, texts, rejected, blanks, headers = read(
        path,
        Form(separator=separator),
        unit_bytes=int(rng.choice([50, 700, 10**6])),
        block_bytes=int(rng.choice([64, 500, 10**6])),
    )
    assert (rejected, blanks, headers) == ([], 0, 1)
    # line ends within quotes come out as \n, since a file's line ends may have been changed as a whole
    assert texts == [[text.replace("\r\n", "\n") for text in row[2:]] for row in rows[1:]]
    assert numbers == lines_of(rows, separator)[1:]


@pytest.mark.parametrize("seed", range(8))
def test_malformed_rows_have_their_line_reason_and_bytes(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    good = [b"%d,%d,c%d,n" % (i % 2, i, i) for i in range(40)]
    odd = [
        b"",
        b"1,2,c",
        b"1,2,c,n,",
        b"1,2,c,n,,",
        b"1,2,c\xe9,n",
        b"2,2,c,n",
        b"1,2.5.1,c,n",
        b'1,2,"c"d,n',
        b"1,2,c\0,n",
    ]
    why = {
        b"1,2,c": "not 4 columns",
        b"1,2,c,n,": "not 4 columns",
        b"1,2,c,n,,": "not 4 columns",
        b"1,2,c\xe9,n": "city is not UTF-8",
        b"2,2,c,n": "label is not 0 or 1",
        b"1,2.5.1,c,n": "price is not a number",
        b'1,2,"c"d,n': "unmatched quotes",
        b"1,2,c\0,n": "NUL byte",
    }
    lines = [b"label,price,city,note"]
    for line in good:
        lines += [*(odd[i] for i in rng.integers(0, len(odd), rng.integers(0, 3))), line]
    # rows of two lines before and after malformed ones
    places = rng.integers(1, len(lines), 5)
    for place in sorted(places, reverse=True):
        lines[place:place] = [b'1,3,"two', b'lines",n']
    path = tmp_path / "log"
    path.write_bytes(b"\n".join(lines) + b"\n")
    numbers, texts, rejected, blanks, headers = read(
        path, Form(), unit_bytes=int(rng.choice([80, 10**6])), block_bytes=int(rng.choice([64, 300, 10**6]))
    )
    assert rejected == [(i, why[line], line) for i, line in enumerate(lines, 1) if line in why]
    assert numbers == [i for i, line in enumerate(lines, 1) if line in good or line.startswith(b'1,3,"')]
    assert [text for text in texts if "\n" in text[0]] == [["two\nlines", "n"]] * 5
    assert (blanks, headers) == (lines.count(b""), 1)


def zipped(data: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("folder/log.csv", data)
    return out.getvalue()


FORMS: dict[str, Callable[[bytes], bytes]] = {
    "gz": lambda data: gzip.compress(data[:99]) + gzip.compress(data[99:]),
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": lambda data: bytes(pa.compress(data, "zstd", asbytes=True)),
    "zip": zipped,
    "BOM": lambda data: b"\xef\xbb\xbf" + data,
    "CRLF": lambda data: data.replace(b"\n", b"\r\n"),
    "CR and LF mixed": lambda data: data.replace(b"\n", b"\r\n", 7),
    "UTF-16": lambda data: data.decode().encode("utf-16"),
    "big-endian UTF-16 in gz": lambda data: gzip.compress(b"\xfe\xff" + data.decode().encode("utf-16-be")),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_told_by_its_first_bytes(tmp_path: Path, form: str) -> None:
    data = written([list(NAMES), *table_of(np.random.default_rng(0), 50)]).replace("\r", "").encode()
    (tmp_path / "plain").write_bytes(data)
    (tmp_path / "log").write_bytes(FORMS[form](data))
    for block_bytes in (70, 10**6):
        plain, packed = (
            read(tmp_path / name, Form(), unit_bytes=300, block_bytes=block_bytes) for name in ("plain", "log")
        )
        assert packed == plain
    assert head(str(tmp_path / "log"), Form(), 20).keys() == set(NAMES)


@pytest.mark.parametrize("form", ["gz", "bz2", "xz", "zst"])
def test_half_a_compressed_file_keeps_the_rows_before_the_break(tmp_path: Path, form: str) -> None:
    rng = np.random.default_rng(0)
    rows = [f"{i % 2},{i},{rng.integers(10**9)},n" for i in range(150_000)]
    data = FORMS[form]("\n".join(["label,price,city,note", *rows]).encode())
    (tmp_path / "log").write_bytes(data[: len(data) // 2])
    reader = table_reader(str(tmp_path / "log"), Columns(spec=SPEC), Form())
    pieces = list(reader(str(tmp_path / "log")))
    numbers = [int(number) for piece in pieces for number in piece.numbers]
    assert numbers == list(range(2, 2 + len(numbers)))
    assert len(numbers) > 1000
    assert pieces[-1].damage


def test_two_files_in_a_zip_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "z", "w") as archive:
        archive.writestr("a", "x")
        archive.writestr("b", "x")
    with pytest.raises(ValueError, match=r"must hold one file: got \['a', 'b'\]; unpack it"):
        text_layout(str(tmp_path / "z"), Form())


@pytest.mark.parametrize(
    ("data", "form", "separator", "names", "line"),
    [
        ("label, price\n1, 2\n", Form(), ",", ("label", "price"), 1),
        ("\n\nlabel\tprice\n1\t2,5\n0\t3,5\n", Form(), "\t", ("label", "price"), 3),
        ("a;b;c\n1,5;2,5;3,5\n", Form(), ";", ("a", "b", "c"), 1),
        ("a b\n1 2\n", Form(), " ", ("a", "b"), 1),
        ("a|b\n1|2\n", Form(), "|", ("a", "b"), 1),
        ("tags,b\nx|y,2\nz|w,1\n", Form(), ",", ("tags", "b"), 1),
        ('"a,1",b\n"x,\ny",2\n', Form(), ",", ("a,1", "b"), 1),
        ("a,b\n1,2\n", Form(names=("a", "b")), ",", ("a", "b"), 1),
        ("1::2::3\n4::5::6\n", Form(names=("a", "b", "c")), "::", ("a", "b", "c"), 0),
        ("1\t2\n", Form(separator="\\t", names=("a", "b")), "\t", ("a", "b"), 0),
        (",label\n0,1\n", Form(), ",", ("column 1", "label"), 1),
        ("label\n1\n", Form(), "\t", ("label",), 1),
    ],
)
def test_separator_and_header_are_told_by_the_first_lines(
    tmp_path: Path, data: str, form: Form, separator: str, names: tuple[str, ...], line: int
) -> None:
    (tmp_path / "f").write_text(data)
    layout = text_layout(str(tmp_path / "f"), form)
    assert (layout.separator, layout.names, layout.header) == (separator, names, line)


@pytest.mark.parametrize(
    ("data", "form", "message"),
    [
        (
            '{"rows": 9, "best": 0.8}\n',
            Form(),
            'file .* must be Parquet, or text with separators: got JSON, \'."rows": 9, .*; convert rows .* or name',
        ),
        ('[\n  {"user": 1, "item": 2}\n]\n', Form(), "file .* must be Parquet, or text with separators: got JSON, "),
        ("1,2\n3,4\n", Form(), "first line of .* must name the columns: got .'1', '2'., which may be values; name the"),
        ("red,x\nblue,y\nred,z\n", Form(), "first line of .* must name the columns: got .'red', 'x'."),
        ("a,b,c\n1,2\n3:4 5\n", Form(), "separator of .* must be told by its first lines: got 'a,b,c"),
        ("1,2,3\n", Form(names=("a", "b")), "columns must name each of the 3 columns of .*: got 2 names; correct them"),
    ],
)
def test_unclear_text_is_refused(tmp_path: Path, data: str, form: Form, message: str) -> None:
    (tmp_path / "f").write_text(data)
    with pytest.raises(ValueError, match=message):
        text_layout(str(tmp_path / "f"), form)


def test_folders_and_patterns_mean_their_files_in_natural_order(tmp_path: Path) -> None:
    for name in (
        "day_2.csv",
        "day_10.csv",
        "_SUCCESS",
        ".day_2.csv.crc",
        "day_2.csv.crc",
        "deep/part-0",
        "_old/part-0",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("a,b\n1,2\n")
    found = {
        pattern: [Path(file).relative_to(tmp_path).as_posix() for file in files_of(f"{tmp_path}/{pattern}")]
        for pattern in ("", "day_*.csv", "*/part-?", "day_1*", "day_2.csv")
    }
    assert found == {
        "": ["day_2.csv", "day_10.csv", "deep/part-0"],
        "day_*.csv": ["day_2.csv", "day_10.csv"],
        "*/part-?": ["_old/part-0", "deep/part-0"],
        "day_1*": ["day_10.csv"],
        "day_2.csv": ["day_2.csv"],
    }
    assert head(str(tmp_path / "day_*.csv"), Form(), 9)["b"].to_pylist() == ["2", "2"]
    with pytest.raises(ValueError, match="must be a file, a folder with files or a pattern: got no file"):
        files_of(f"{tmp_path}/nothing*")


def test_libsvm_lines_become_lists_with_weights(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [
        (
            int(rng.integers(2)),
            {int(i): round(float(v), 3) for i, v in zip(rng.permutation(50)[:n], rng.random(n), strict=True)},
        )
        for n in rng.integers(0, 6, 40)
    ]
    lines = [" ".join([str(label), *(f"{i}:{v}" for i, v in pairs.items())]) for label, pairs in rows]
    lines[7:7] = ["", "1 5:0.5 x:1", "# nothing", "0 3:1 # a comment"]
    (tmp_path / "f").write_text("\n".join(lines) + "\n")
    spec = DatasetSpec(
        name="f",
        label="label",
        dense=(),
        sparse=(SparseFeature(name="features", rows=50, multi_hot=True, weights="values"),),
    )
    reader = table_reader(str(tmp_path / "f"), Columns(spec=spec), Form())
    (got,) = reader(str(tmp_path / "f"))
    rows[7:7] = [(0, {3: 1.0})]
    assert got.label.tolist() == [label for label, _ in rows]
    assert got.sparse[0].to_pylist() == [list(pairs) for _, pairs in rows]
    for found, (_, pairs) in zip(got.id_weights[0].to_pylist(), rows, strict=True):
        np.testing.assert_allclose(found, list(pairs.values()), rtol=1e-6)
    assert [(each.number, each.reason) for each in got.rejected] == [(9, "not 'label index:value index:value'")]


@pytest.mark.parametrize("separator", [",", ";", "|"])
def test_rows_that_end_in_hours_and_minutes_are_no_libsvm(tmp_path: Path, separator: str) -> None:
    rows = [["user", "item", "time"], *(["u1", f"i{k}", f"2024-03-05 1{k}:30"] for k in range(9))]
    (tmp_path / "log").write_text("\n".join(map(separator.join, rows)) + "\n")
    found = head(str(tmp_path / "log"), Form(), 9)
    assert [found[name].to_pylist() for name in rows[0]] == [*map(list, zip(*rows[1:], strict=True))]
