"""Specs proposed for files of one's own: what each column becomes, and that preparation follows it."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dlrm_torchrec.preparation.readers.raw_csv import CsvReader

from dlrm_torchrec.datasets.prepared.manifest import Manifest
from dlrm_torchrec.preparation.prepare import Source, prepare
from dlrm_torchrec.preparation.propose import propose, read_columns
from dlrm_torchrec.preparation.readers.columns import Columns
from dlrm_torchrec.preparation.readers.raw_parquet import ParquetReader
from dlrm_torchrec.preparation.splits import Whole
from dlrm_torchrec.schema import DatasetSpec, DenseFeature, SparseFeature

ROWS = 3000


def values(seed: int = 0) -> dict[str, list[Any]]:
    """Columns of every sort, as Python values; None is missing."""
    random = np.random.default_rng(seed)
    tags = [[f"t{tag}" for tag in random.integers(0, 9, random.integers(0, 4))] for _ in range(ROWS)]
    return {
        "clicked": ["yes" if value else "no" for value in random.random(ROWS) < 0.1],
        "price": [None if value < 0.1 else round(float(value), 6) for value in random.random(ROWS)],
        "income": [int(value) for value in random.pareto(0.7, ROWS) * 100],
        "weeks": [int(value) for value in random.integers(0, 53, ROWS)],
        "city": [None if value == 0 else f"c{value}" for value in random.integers(0, 20, ROWS)],
        "shop_id": [int(value) for value in random.integers(0, 500, ROWS)],
        "device": [int(value) for value in random.integers(0, 4, ROWS)],
        "tags": tags,
        "session": [f"s{number:08x}" for number in random.permutation(10**6)[:ROWS]],
        "row": list(range(5, 5 + ROWS)),
        "version": ["v1"] * ROWS,
    }


EXPECTED: dict[str, Any] = {
    "price": DenseFeature(name="price"),
    "income": DenseFeature(name="income", log1p=True),
    "weeks": DenseFeature(name="weeks"),
    "city": SparseFeature(name="city", rows=0, encoding="vocab"),
    "shop_id": SparseFeature(name="shop_id", rows=0, encoding="vocab"),
    "device": SparseFeature(name="device", rows=0, encoding="vocab"),
    "tags": SparseFeature(name="tags", rows=0, encoding="vocab", multi_hot=True),
    "session": None,
    "row": None,
    "version": None,
}


def write(path: Path, columns: dict[str, list[Any]], separator: str = ",") -> Path:
    """The columns as a file of the path's kind."""
    if path.suffix == ".parquet":
        pq.write_table(pa.table(columns), path)
        return path
    rows = zip(*columns.values(), strict=True)
    cells = [
        ["" if cell is None else "|".join(cell) if isinstance(cell, list) else str(cell) for cell in row]
        for row in rows
    ]
    text = "\n".join([separator.join(columns), *(separator.join(row) for row in cells)]) + "\n"
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


@pytest.mark.parametrize("name", ["log.csv", "log.csv.gz", "log.parquet"])
def test_every_column_becomes_what_it_is_and_can_be_prepared(tmp_path: Path, name: str) -> None:
    path = str(write(tmp_path / name, values()))
    spec, found = propose("log", read_columns(path, ",", 2000))
    assert (spec.label, spec.positive_label) == ("clicked", "yes")
    assert {proposal.name: proposal.feature for proposal in found[1:]} == EXPECTED
    assert set(spec.feature_names) == {n for n, kind in EXPECTED.items() if kind}

    columns = Columns(spec=spec)
    reader = ParquetReader(columns=columns) if name.endswith("parquet") else CsvReader(columns=columns)
    prepare(spec, [Source(path=path, reader=reader, assignment=Whole("train"))], str(tmp_path / "prepared"))
    manifest = Manifest.load(str(tmp_path / "prepared"))
    assert manifest.splits["train"].rows == ROWS
    assert manifest.report["rows_quarantined"] == 0
    rows = {feature.name: feature.rows for feature in manifest.spec.sparse}
    assert rows == {"city": 19 + 2, "shop_id": len(set(values()["shop_id"])) + 2, "device": 4 + 2, "tags": 9 + 2}


def test_reasons_are_told(tmp_path: Path) -> None:
    _, found = propose("log", read_columns(str(write(tmp_path / "log.csv", values())), ",", ROWS))
    reasons = {proposal.name: proposal.reason for proposal in found}
    assert reasons["clicked"] == "label: 'yes' means 1"
    assert reasons["income"].endswith("over 100 times its mean: log(1 + x)")
    assert reasons["city"] == "values, vocabulary: 19 distinct, 5% missing"
    assert reasons["shop_id"].endswith("distinct, whole numbers with the name of a code")
    assert reasons["device"] == "values, vocabulary: 4 distinct, at most 32 whole numbers"
    assert reasons["session"] == "left out: every row has another value"
    assert reasons["row"] == "left out: it numbers the rows"
    assert reasons["version"] == "left out: 1 distinct value"


def test_many_ids_are_hashed_into_twice_as_many_rows() -> None:
    ids = np.random.default_rng(0).permutation(150_000)
    columns = {"label": pa.array([0, 1] * 75_000), "user": pa.array([f"u{i}" for i in [*ids[:-1], ids[0]]])}
    spec, _ = propose("log", columns)
    assert spec.sparse == (SparseFeature(name="user", rows=1 << 19, encoding="hash"),)


def test_a_code_that_never_repeats_in_the_sample_is_kept() -> None:
    texts = pa.array([f"u{number}" for number in range(100)])
    columns = {"label": pa.array([0, 1] * 50), "user_id": texts, "session": texts}
    spec, _ = propose("log", columns)
    assert [feature.name for feature in spec.sparse] == ["user_id"]


@pytest.mark.parametrize(
    ("label", "positive"),
    [
        ([0, 1, 0], None),
        ([0.0, 1.0, 0.0], None),
        ([False, True, False], None),
        (["0", "1", "0"], None),
        (["False", "True", "False"], "True"),
        (["no click", "click", "click"], "click"),
        ([" - 50000.", " 50000+.", " - 50000."], " 50000+."),
    ],
)
def test_labels(label: list[Any], positive: str | None) -> None:
    columns = {"target": pa.array(label), "x": pa.array([1.5, 2.5, 7.0]), "c": pa.array(["a", "b", "a"])}
    spec, _ = propose("log", columns, "target")
    assert spec.positive_label == positive


def test_parquet_types() -> None:
    columns = {
        "y": pa.array([0, 1, 0, 1]),
        "word": pa.array(["a", "b", "a", None]).dictionary_encode().cast(pa.string()),
        "seen": pa.array([True, False, None, True]),
        "ids": pa.array([[1, 2], [], [2], None]),
        "when": pa.array([0, 1, 2, 3], pa.timestamp("s")),
        "kind": pa.array([3, 4, 3, 4], pa.int8()),
    }
    spec, found = propose("log", columns)
    assert [(feature.name, feature.multi_hot) for feature in spec.sparse] == [
        ("word", False),
        ("seen", False),
        ("ids", True),
        ("kind", False),
    ]
    assert {proposal.name: proposal.reason for proposal in found}["when"] == "left out: timestamp[s] is not supported"


@pytest.mark.parametrize(
    ("columns", "label", "message"),
    [
        (
            {"a": [1, 2, 3], "b": ["x", "y", "z"]},
            "",
            r"label must be known: got no column of two values among \['a', 'b'",
        ),
        (
            {"a": [1, 2, 1], "b": ["x", "y", "x"]},
            "",
            r"label must be known: got \['a', 'b'\] of two values among .*; name",
        ),
        ({"a": [1, 2, 1]}, "z", r"label must be one of the columns \['a'\]: got 'z'; name it with --label"),
        ({"a": [1, 2, 3]}, "a", r"label 'a' must have two values: got \['1', '2', '3'\]; name another with --label"),
    ],
)
def test_labels_that_are_refused(columns: dict[str, list[Any]], label: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        propose("log", {name: pa.array(each) for name, each in columns.items()}, label)


def test_files_without_rows(tmp_path: Path) -> None:
    (tmp_path / "empty.csv").write_text("a,b\n")
    with pytest.raises(
        ValueError, match=r"file .*empty.csv must have a header line and rows separated by ',': got none"
    ):
        read_columns(str(tmp_path / "empty.csv"), ",", 10)
    pq.write_table(pa.table({"a": pa.array([], pa.int64())}), tmp_path / "empty.parquet")
    with pytest.raises(ValueError, match=r"file .*empty.parquet must have rows: got none; name another"):
        read_columns(str(tmp_path / "empty.parquet"), ",", 10)


def test_malformed_lines_do_not_decide(tmp_path: Path) -> None:
    path = tmp_path / "log.tsv"
    path.write_text("y\tx\tc\n0\t1.5\ta\n1\tno\n1\t2.5\tb\n0\t8\ta\n")
    spec, _ = propose("log", read_columns(str(path), "\t", 10))
    assert [feature.name for feature in spec.dense] == ["x"]


def test_as_a_command(tmp_path: Path) -> None:
    path, spec = write(tmp_path / "clicks.csv", values()), tmp_path / "spec.json"
    command = [
        sys.executable,
        "-X",
        "importtime",
        "-m",
        "dlrm_torchrec.preparation.propose",
        str(path),
        f"--output={spec}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "spec.json: 3 dense and 4 sparse features; prepare with --spec" in done.stdout
    assert DatasetSpec.from_json(json.loads(spec.read_text())).name == "clicks"
    assert " torch\n" not in done.stderr  # which would take seconds
    failed = subprocess.run([*command, "--label=nothing"], capture_output=True, text=True)
    assert failed.returncode == 1
    assert "error: label must be one of the columns" in failed.stderr
