"""CSV and Parquet of any columns, through a spec."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from iopath.common.file_io import g_pathmgr

from dlrm_torchrec.datasets.prepared.manifest import Manifest
from dlrm_torchrec.preparation.prepare import Source, prepare
from dlrm_torchrec.preparation.readers.columns import Columns
from dlrm_torchrec.preparation.readers.raw_parquet import ParquetReader
from dlrm_torchrec.preparation.readers.rows import Reader
from dlrm_torchrec.preparation.readers.tables import Form, table_reader
from dlrm_torchrec.preparation.readers.text.reader import TextReader
from dlrm_torchrec.preparation.splits import ByHash, Whole
from dlrm_torchrec.schema import DatasetSpec, DenseFeature, SparseFeature
from tests.elsewhere import Elsewhere
from tests.preparation.test_prepare_ids import fnv1a, splitmix64

SPEC = DatasetSpec(
    name="log",
    label="clicked",
    positive_label="yes",
    dense=(DenseFeature(name="price", default=7.0), DenseFeature(name="age", log1p=True)),
    sparse=(
        SparseFeature(name="slot", rows=4),
        SparseFeature(name="city", rows=0, encoding="vocab", min_count=2),
        SparseFeature(name="user", rows=1000, encoding="hash"),
        SparseFeature(name="tags", rows=0, encoding="vocab", multi_hot=True),
        SparseFeature(name="items", rows=50, multi_hot=True),
    ),
)
NAMES = ["unused", "clicked", "price", "age", "slot", "city", "user", "tags", "items"]
Row = dict[str, Any]


def random_rows(count: int, seed: int = 0) -> list[Row]:
    rng = np.random.default_rng(seed)

    def maybe(value: object) -> object:
        return None if rng.random() < 0.15 else value

    return [
        {
            "unused": "a,b",
            "clicked": str(rng.choice(["yes", "no"])),
            "price": maybe(round(float(rng.normal()), 3)),
            "age": maybe(int(rng.integers(-5, 80))),
            "slot": maybe(int(rng.integers(4))),
            "city": maybe(str(rng.choice(["Kraków", "São Paulo, SP", 'the "Hague"', f"town {rng.integers(40)}"]))),
            "user": maybe(f"u{rng.integers(10**6)}"),
            "tags": maybe([maybe(f"t{rng.integers(9)}") for _ in range(rng.integers(1, 4))])
            if rng.random() < 0.9
            else [],
            "items": [int(item) for item in rng.integers(0, 50, rng.integers(0, 5))],
        }
        for _ in range(count)
    ]


def as_csv(rows: Sequence[Row], separator: str = ",") -> bytes:
    def text(value: object) -> str:
        if isinstance(value, list):
            # in text, one missing tag alone and no tag are the same empty field
            return "|".join("" if item is None else str(item) for item in value)
        return "" if value is None else str(value)

    def quoted(value: str) -> str:
        return '"' + value.replace('"', '""') + '"' if separator in value or '"' in value else value

    lines = [separator.join(NAMES), *(separator.join(quoted(text(row[name])) for name in NAMES) for row in rows)]
    return "".join(f"{line}\n" for line in lines).encode()


def as_parquet(rows: Sequence[Row], path: Path) -> None:
    pq.write_table(pa.table({name: [row[name] for row in rows] for name in NAMES}), path, row_group_size=100)


def reference(rows: Sequence[Row], train: Sequence[Row]) -> list[Row]:
    """Prepared rows, one value at a time."""
    cities = Counter(row["city"] for row in train if row["city"] is not None)
    tags = Counter(tag for row in train for tag in row["tags"] or [] if tag is not None)
    city_ids = {
        v: i for i, v in enumerate(sorted((c for c in cities if cities[c] > 1), key=lambda c: (-cities[c], c)), 2)
    }
    tag_ids = {v: i for i, v in enumerate(sorted(tags, key=lambda t: (-tags[t], t)), 2)}

    def prepared(row: Row) -> Row:
        age = np.log1p(max(row["age"] or 0, 0))
        user = 0 if row["user"] is None else 1 + splitmix64(fnv1a(str(row["user"]).encode())) % 999
        return {
            "clicked": float(row["clicked"] == "yes"),
            "price": float(np.float32(7.0 if row["price"] is None else row["price"])),
            "age": float(np.float32(age)),
            "slot": row["slot"] or 0,
            "city": 0 if row["city"] is None else city_ids.get(row["city"], 1),
            "user": user,
            "tags": [0 if tag is None else tag_ids.get(tag, 1) for tag in row["tags"] or []],
            "items": row["items"],
        }

    return [prepared(row) for row in rows]


def read(folder: Path, split: str) -> list[Row]:
    files = Manifest.load(str(folder)).splits[split].files
    return [row for file in files for row in pq.read_table(folder / file.path).to_pylist()]


def text_reader(path: object, columns: Columns, separator: str = "", **options: Any) -> TextReader:
    """The reader of a text file, with other ``options`` than table_reader chooses."""
    found = table_reader(str(path), columns, Form(separator=separator))
    assert isinstance(found, TextReader)
    return replace(found, **options)


def source(path: Path, reader: Reader, split: str = "train") -> Source:
    return Source(path=str(path), reader=reader, assignment=Whole(split))


@pytest.mark.parametrize("form", ["csv", "csv.gz", "tsv", "parquet"])
@pytest.mark.parametrize("piece", [150, 10**6])
def test_prepared_rows_equal_the_reference(tmp_path: Path, form: str, piece: int) -> None:
    train, val = random_rows(400), random_rows(90, seed=1)
    if form != "parquet":
        for row in train + val:
            row["tags"] = [] if row["tags"] == [None] else row["tags"]
    columns = Columns(spec=SPEC, negative_label="no")
    reader: Reader = ParquetReader(columns=columns, chunk_rows=piece)
    for name, rows in (("train", train), ("val", val)):
        path = tmp_path / f"{name}.{form}"
        if form == "parquet":
            as_parquet(rows, path)
        else:
            separator = "\t" if form == "tsv" else ","
            data = as_csv(rows, separator)
            path.write_bytes(gzip.compress(data) if form == "csv.gz" else data)
            reader = text_reader(path, columns, separator, block_bytes=piece)
    sources = [source(tmp_path / f"train.{form}", reader), source(tmp_path / f"val.{form}", reader, "val")]
    manifest = prepare(SPEC, sources, str(tmp_path / "out"), row_group_rows=128)
    assert read(tmp_path / "out", "train") == reference(train, train)
    assert read(tmp_path / "out", "val") == reference(val, train)
    tags = manifest.spec.sparse[3]
    assert tags.pooling_factor == pytest.approx(np.mean([len(row["tags"] or []) for row in train]))
    assert manifest.report["headers"] == (0 if form == "parquet" else 2)
    metadata = pq.ParquetFile(tmp_path / "out" / manifest.splits["train"].files[0].path).metadata
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [128, 128, 128, 16]
    assert all(not field.nullable for field in pq.read_schema(tmp_path / "out" / "train/part-00000-000.parquet"))


BAD_VALUES = [
    ("clicked", "maybe", "clicked is not a known label"),
    ("clicked", "", "clicked is missing"),
    ("price", "cheap", "price is not a number"),
    ("price", "1.5.2", "price is not a number"),
    ("price", "1e39", "price is not a finite float32"),
    ("age", "1 2", "age is not a number"),
    ("slot", "4", "slot is not an id in [0, 4)"),
    ("slot", "-1", "slot is not an id in [0, 4)"),
    ("slot", "1.5", "slot is not an id in [0, 4)"),
    ("slot", "9" * 30, "slot is not an id in [0, 4)"),
    ("items", "1|50", "items is not an id in [0, 50)"),
    ("city", "\0", "NUL byte"),
    ("city", 'a"b"\xff', "city is not UTF-8"),
    ("city", "a,b", "not 9 columns"),
    ("city", '"quoted" and more', "unmatched quotes"),
]


def test_malformed_csv_rows_are_quarantined_and_their_neighbours_kept(tmp_path: Path) -> None:
    rows = [row | {"city": "here", "tags": ["t"]} for row in random_rows(2 * len(BAD_VALUES))]
    header, *lines = as_csv(rows).splitlines()
    for i, (name, value, _) in enumerate(BAD_VALUES):
        good = dict.fromkeys(NAMES, "") | {"clicked": "no", name: value}
        lines[2 * i] = ",".join(good.values()).encode("latin-1")
    kept = [row for i, row in enumerate(rows) if i % 2]
    for block_bytes in (100, 10**6):
        path, output = tmp_path / "log.csv", tmp_path / str(block_bytes)
        path.write_bytes(b"\r\n".join([header, *lines]))
        reader = text_reader(path, Columns(spec=SPEC, negative_label="no"), block_bytes=block_bytes)
        prepare(SPEC, [source(path, reader)], str(output), max_bad_share=0.5)
        assert read(output, "train") == reference(kept, kept)
        quarantined = [line.split("\t")[1:3] for line in (output / "quarantine.tsv").read_text().splitlines()[1:]]
        assert quarantined == [[str(2 * i + 2), reason] for i, (_, _, reason) in enumerate(BAD_VALUES)]


def test_an_unmatched_quote_costs_the_rows_up_to_the_next_one(tmp_path: Path) -> None:
    lines = ["clicked,city", *(f"{i % 2},town {i}" for i in range(8)), '1,"two\nlines"', "0,last"]
    lines[3] = '1,"open'
    path = tmp_path / "log.csv"
    path.write_text("\n".join(lines) + "\n")
    spec = DatasetSpec(
        name="log", label="clicked", dense=(), sparse=(SparseFeature(name="city", rows=9, encoding="hash"),)
    )
    first, last = text_reader(path, Columns(spec=spec))(str(path))
    assert (first.numbers.tolist(), last.numbers.tolist()) == ([2, 3], [12])
    assert [(each.number, each.reason) for each in first.rejected + last.rejected] == [
        (4, "unmatched quotes"),
        (11, "not 2 columns"),
    ]
    assert first.rejected[0].raw == b'1,"open\n1,town 3\n0,town 4\n1,town 5\n0,town 6\n1,town 7\n1,"two'


def test_malformed_parquet_rows_are_quarantined(tmp_path: Path) -> None:
    spec = DatasetSpec(
        name="log",
        label="y",
        dense=(DenseFeature(name="x"),),
        sparse=(SparseFeature(name="a", rows=3), SparseFeature(name="b", rows=0, encoding="vocab")),
    )
    table = pa.table(
        {
            "y": [1.0, 0.0, 0.5, None, 1.0, 0.0, 0.0],
            "x": [1.0, float("nan"), 1.0, 1.0, float("inf"), 1.0, None],
            "a": [0, 1, 2, 2, 2, 3, None],
            "b": [5.0, float("nan"), 5.0, 5.0, 5.0, 5.0, 0.5],
        }
    )
    pq.write_table(table, tmp_path / "t.parquet")
    reader = ParquetReader(columns=Columns(spec=spec), chunk_rows=2)
    prepare(spec, [source(tmp_path / "t.parquet", reader)], str(tmp_path / "out"), max_bad_share=0.9)
    assert read(tmp_path / "out", "train") == [{"y": 1, "x": 1, "a": 0, "b": 2}, {"y": 0, "x": 0, "a": 1, "b": 0}]
    lines = [line.split("\t") for line in (tmp_path / "out" / "quarantine.tsv").read_text().splitlines()[1:]]
    assert [(number, reason) for _, number, reason, _ in lines] == [
        ("3", "y is not 0 or 1"),
        ("4", "y is missing"),
        ("5", "x is not a finite float32"),
        ("6", "a is not an id in [0, 3)"),
        ("7", "b is not a whole number"),
    ]
    assert json.loads(lines[3][3]) == {"y": 0.0, "x": 1.0, "a": 3, "b": 5.0}


def prepared_csv(tmp_path: Path, data: bytes, **options: Any) -> Manifest:
    (tmp_path / "log.csv").write_bytes(data)
    reader = text_reader(tmp_path / "log.csv", Columns(spec=SPEC, negative_label="no"))
    return prepare(SPEC, [source(tmp_path / "log.csv", reader)], str(tmp_path / "out"), **options)


def test_a_random_share_is_split_off_and_kept_out_of_the_vocabulary(tmp_path: Path) -> None:
    path, rows = tmp_path / "log.csv", [row | {"tags": ["t"]} for row in random_rows(500)]
    path.write_bytes(as_csv(rows))
    reader = text_reader(path, Columns(spec=SPEC))
    assignment = ByHash("train", (("val", 0.3),))
    prepare(SPEC, [Source(path=str(path), reader=reader, assignment=assignment)], str(tmp_path / "out"))
    in_val = assignment.of_numbers(np.arange(2, 502)) == 0  # line numbers, after the header
    train = [row for row, val in zip(rows, in_val, strict=True) if not val]
    assert read(tmp_path / "out", "train") == reference(train, train)
    assert read(tmp_path / "out", "val") == reference([row for row in rows if row not in train], train)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "must have each column of the spec once: got .''., wrong for"),
        (as_csv([]), "split 'train' must have rows: got none of the 0 rows read"),
        (b"clicked,price\n", "must have each column of the spec once"),
        (as_csv(random_rows(3)).decode().encode("utf-16-le"), "must have each column of the spec once"),
        (
            as_csv(random_rows(9)) + b"x\n",
            r"malformed rows must be at most 1\.00% of all: got 1 of 10, 1 of them because",
        ),
    ],
)
def test_unfit_files_are_refused(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prepared_csv(tmp_path, data)
    assert not (tmp_path / "out" / "dataset.json").exists()


def test_parquet_that_breaks_off_is_refused(tmp_path: Path) -> None:
    as_parquet(random_rows(100), tmp_path / "whole.parquet")
    (tmp_path / "half.parquet").write_bytes((tmp_path / "whole.parquet").read_bytes()[:2000])
    with pytest.raises(ValueError, match="must be a complete Parquet file"):
        prepare(
            SPEC, [source(tmp_path / "half.parquet", ParquetReader(columns=Columns(spec=SPEC)))], str(tmp_path / "o")
        )


def test_column_types_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    rows = [row | {"tags": "not a list"} for row in random_rows(5)]
    as_parquet(rows, tmp_path / "t.parquet")
    with pytest.raises(ValueError, match="column 'tags' must hold lists: got string"):
        prepare(SPEC, [source(tmp_path / "t.parquet", ParquetReader(columns=Columns(spec=SPEC)))], str(tmp_path / "o"))


def test_prepared_folder_is_replaced_only_when_told(tmp_path: Path) -> None:
    data = as_csv(random_rows(300))
    first = prepared_csv(tmp_path, data, row_group_rows=100)
    with pytest.raises(ValueError, match="must not be prepared already"):
        prepared_csv(tmp_path, data)
    assert Manifest.load(str(tmp_path / "out")) == first
    (tmp_path / "out" / "train" / "part-00007-000.parquet").write_bytes(b"left over")
    assert prepared_csv(tmp_path, as_csv(random_rows(20)), overwrite=True).splits["train"].rows == 20
    assert [path.name for path in (tmp_path / "out" / "train").iterdir()] == ["part-00000-000.parquet"]


def test_interrupted_preparation_is_replaced(tmp_path: Path) -> None:
    first = prepared_csv(tmp_path, as_csv(random_rows(300)))
    (tmp_path / "out" / "dataset.json").unlink()
    assert prepared_csv(tmp_path, as_csv(random_rows(300))) == first


def test_files_of_others_are_never_removed(tmp_path: Path) -> None:
    mine = tmp_path / "out" / "train" / "part-00000-000.parquet"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    with pytest.raises(ValueError, match="must be empty or made by a preparation"):
        prepared_csv(tmp_path, as_csv(random_rows(3)), overwrite=True)
    assert mine.read_bytes() == b"mine"


def test_missing_source_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"gone\.csv must be a file"):
        prepare(SPEC, [source(tmp_path / "gone.csv", ParquetReader(columns=Columns(spec=SPEC)))], str(tmp_path / "out"))


@pytest.mark.parametrize("separator", ['"', "\n", "12345"])
def test_unfit_separators_are_refused(separator: str) -> None:
    with pytest.raises(ValueError, match="separator must be at most 4 bytes without quotes and line ends"):
        Form(separator=separator)


def test_files_of_a_users_store_are_read_and_written(tmp_path: Path) -> None:
    g_pathmgr.register_handler(Elsewhere(tmp_path), allow_override=True)
    (tmp_path / "log.csv").write_bytes(as_csv(random_rows(50)))
    reader = text_reader("elsewhere://log.csv", Columns(spec=SPEC))
    sources = [Source(path="elsewhere://log.csv", reader=reader, assignment=Whole("train"))]
    for _ in range(2):
        manifest = prepare(SPEC, sources, "elsewhere://out/log", overwrite=True)
    assert Manifest.load("elsewhere://out/log") == manifest
    assert len(read(tmp_path / "out/log", "train")) == 50
