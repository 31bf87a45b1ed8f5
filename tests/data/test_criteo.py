"""data/criteo/prepare.py as a user runs it."""

from __future__ import annotations

import gzip
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow.parquet as pq
import pytest

from dlrm_torchrec.datasets.prepared.manifest import Manifest
from dlrm_torchrec.schema import DatasetSpec, DenseFeature, SparseFeature
from tests.data import load_script
from tests.preparation import criteo_files
from tests.scripts import run_python

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script(ROOT / "data/criteo/prepare.py")


def labels(folder: Path, split: str) -> list[int]:
    files = Manifest.load(str(folder)).splits[split].files
    return [int(label) for file in files for label in pq.read_table(folder / file.path)["label"].to_pylist()]


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return run_python(["data/criteo/prepare.py", *map(str, arguments)], ROOT)


@pytest.mark.parametrize("encoding", ["vocab", "hash", "managed"])
def test_kaggle_holds_out_the_last_seventh(tmp_path: Path, script: ModuleType, encoding: str) -> None:
    data = criteo_files.content(np.random.default_rng(0), 103)
    (tmp_path / "train.txt").write_bytes(data)
    (tmp_path / "test.txt").write_bytes(criteo_files.content(np.random.default_rng(1), 11, labelled=False))
    config = script.Config(
        kind="kaggle",
        input=(str(tmp_path / "train.txt"),),
        unlabelled=(str(tmp_path / "test.txt"),),
        output=str(tmp_path / "out"),
        encoding=encoding,
    )
    script.main(config)
    expected = [label for _, label, _, _ in criteo_files.read(data).good]
    assert labels(tmp_path / "out", "train") == expected[:89]  # the last day of 103 = 7 x 14 + 5 rows has 14
    assert labels(tmp_path / "out", "val") == expected[89:96]
    assert labels(tmp_path / "out", "test") == expected[96:]
    assert labels(tmp_path / "out", "unlabelled") == [0] * 11
    sparse = Manifest.load(str(tmp_path / "out")).spec.sparse
    rows = [feature.rows for feature in sparse]
    assert rows == [count + 1 for count in script.KAGGLE_ROWS] if encoding != "vocab" else max(rows) < 100
    assert {feature.encoding for feature in sparse} == {encoding}


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_1tb_holds_out_the_last_day(tmp_path: Path, script: ModuleType, pack: Callable[[bytes], bytes]) -> None:
    days = {day: criteo_files.content(np.random.default_rng(day), 20 + day) for day in (0, 2, 10)}
    for day, data in days.items():
        (tmp_path / f"day_{day}").write_bytes(pack(data))
    files = tuple(sorted(str(path) for path in tmp_path.glob("day_*")))  # as a shell sorts them: 0, 10, 2
    script.main(script.Config(kind="1tb", input=files, output=str(tmp_path / "out"), max_ind_range=60))
    expected = {day: [label for _, label, _, _ in criteo_files.read(data).good] for day, data in days.items()}
    assert labels(tmp_path / "out", "train") == expected[0] + expected[2]
    assert labels(tmp_path / "out", "val") == expected[10][:15]
    assert labels(tmp_path / "out", "test") == expected[10][15:]
    assert max(feature.rows for feature in Manifest.load(str(tmp_path / "out")).spec.sparse) <= 62


def test_splits_by_file_and_by_share(tmp_path: Path, script: ModuleType) -> None:
    for name, rows in (("a", 30), ("b", 20), ("c", 10)):
        (tmp_path / name).write_bytes(criteo_files.content(np.random.default_rng(rows), rows))
    a, b, c = (str(tmp_path / name) for name in "abc")
    script.main(script.Config(kind="1tb", input=(a,), val=(b,), test=(c,), output=str(tmp_path / "files")))
    splits = Manifest.load(str(tmp_path / "files")).splits
    assert {name: split.rows for name, split in splits.items()} == {"train": 30, "val": 20, "test": 10}
    script.main(script.Config(kind="kaggle", input=(a,), val_share=0.2, test_share=0.3, output=str(tmp_path / "share")))
    splits = Manifest.load(str(tmp_path / "share")).splits
    assert sum(split.rows for split in splits.values()) == 30
    assert all(split.rows for split in splits.values())


def test_workers_memory_and_shuffling_from_the_command_line(tmp_path: Path) -> None:
    data = criteo_files.content(np.random.default_rng(0), 210)
    (tmp_path / "train.txt").write_bytes(data)
    options = ["--workers", "2", "--memory_gib", "0.5", "--shuffle_window", "60", "--seed", "4", "--encoding", "hash"]
    done = run("kaggle", "--input", tmp_path / "train.txt", "--output", tmp_path / "out", *options)
    assert done.returncode == 0, done.stderr
    in_order = [label for _, label, _, _ in criteo_files.read(data).good][:180]
    shuffled = labels(tmp_path / "out", "train")
    assert shuffled != in_order
    for start in range(0, 180, 60):
        assert sum(shuffled[start : start + 60]) == sum(in_order[start : start + 60])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "table"}, "--spec must name the JSON file"),
        ({"kind": "1tb"}, "--input must hold at least two days"),
        ({"kind": "kaggle", "input": ("a", "b")}, "--input must be one file for kaggle"),
    ],
)
def test_unfit_arguments_are_refused(
    tmp_path: Path, script: ModuleType, monkeypatch: pytest.MonkeyPatch, options: dict[str, object], message: str
) -> None:
    for name in ("a", "b", "day_0"):
        (tmp_path / name).write_text("x")
    monkeypatch.chdir(tmp_path)
    config = script.Config(**({"input": ("day_0",), "output": str(tmp_path)} | options))
    with pytest.raises(ValueError, match=message):
        script.main(config)


def test_table_from_the_command_line(tmp_path: Path) -> None:
    spec = DatasetSpec(
        name="log",
        label="y",
        dense=(DenseFeature(name="x"),),
        sparse=(SparseFeature(name="word", rows=0, encoding="vocab"),),
    )
    (tmp_path / "spec.json").write_text(json.dumps(spec.to_json()))
    (tmp_path / "log.csv").write_text("y,x,word\n1,0.5,a\n0,,b\n1,2,a\n")
    done = run("table", "--spec", tmp_path / "spec.json", "--input", tmp_path / "log.csv", "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "text with 3 columns, named in line 1, and separator ','" in done.stdout
    assert "val: 10% of the rows, drawn at random; --val or --val_share 0 changes this" in done.stdout
    assert "3 train, 0 val rows; 0 malformed rows" in done.stdout
    assert "warning: split 'val' has no rows" in done.stdout
    assert pq.read_table(tmp_path / "out/train/part-00000-000.parquet").to_pylist() == [
        {"y": 1.0, "x": 0.5, "word": 2},
        {"y": 0.0, "x": 0.0, "word": 3},
        {"y": 1.0, "x": 2.0, "word": 2},
    ]


def test_bad_files_end_in_one_sentence(tmp_path: Path) -> None:
    data = criteo_files.content(np.random.default_rng(0), 20)
    (tmp_path / "train.txt").write_bytes(data.decode().encode("utf-16-le"))
    output = tmp_path / "out"
    done = run("kaggle", "--input", tmp_path / "train.txt", "--output", output)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: malformed rows must be at most 1.00% of all: got 21 of 21")
    assert "because 'NUL byte'" in done.stderr
    assert len((output / "quarantine.tsv").read_text().splitlines()) == 22
    assert json.loads((output / "report.json").read_text())["reasons"] == {"NUL byte": 21}
    again = run("kaggle", "--input", tmp_path / "gone.txt", "--output", output)
    assert (again.returncode, again.stderr.count("\n")) == (1, 1)
    assert "gone.txt" in again.stderr


def test_half_a_download_is_kept_and_named(tmp_path: Path) -> None:
    packed = gzip.compress(criteo_files.content(np.random.default_rng(0), 400))
    (tmp_path / "train.txt.gz").write_bytes(packed[: len(packed) // 2])
    expected = criteo_files.read((tmp_path / "train.txt.gz").read_bytes())
    done = run("kaggle", "--input", tmp_path / "train.txt.gz", "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert f"truncated gzip stream; the {len(expected.good)} rows before were kept" in done.stdout
    assert sum(split.rows for split in Manifest.load(str(tmp_path / "out")).splits.values()) == len(expected.good) > 100
