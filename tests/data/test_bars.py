"""BARS' Criteo_x1 and Criteo_x4 as a person prepares them, from made-up files of the same forms."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dlrm_torchrec.datasets.criteo import BARS_COLUMNS, DENSE_NAMES, SPARSE_NAMES, criteo_x1_spec, criteo_x4_spec
from dlrm_torchrec.datasets.prepared.manifest import Manifest
from dlrm_torchrec.preparation.stratified import stratified_parts
from dlrm_torchrec.raw_values import squared_logs
from tests.data import bars_files, load_script

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script(ROOT / "data/criteo/prepare.py")


def prepared(folder: Path, split: str) -> pa.Table:
    return pa.concat_tables(
        pq.read_table(folder / file.path) for file in Manifest.load(str(folder)).splits[split].files
    )


def test_parts_are_those_of_scikit_learn() -> None:
    """What scikit-learn 1.9.1 says: StratifiedKFold(10, shuffle=True, random_state=2018).split(zeros(103), labels)."""
    random = np.random.default_rng(5)
    labels = random.random(103) < 0.3
    labels[0] = False
    expected = "4892692405107911345803812293086304608506354146479656711478880913268279775054861143025923679593052732217"
    assert "".join(map(str, stratified_parts(labels, 10, 2018))) == expected
    assert "".join(map(str, stratified_parts(~labels, 10, 2018))) == expected  # labels count in the order of their rows


def test_squared_logs_by_hand() -> None:
    # ln(3)² = 1.207, ln(4)² = 1.922, ln(5)² = 2.590, ln(23)² = 9.83, ln(24)² = 10.1, ln(23,159,456)² = 287.5
    values = np.array([np.nan, -2, 0, 1, 2, 3, 4, 5, 23, 24, 23_159_456])
    assert squared_logs(values).to_pylist() == [0, -2, 0, 1, 2, 1, 1, 2, 9, 10, 287]


def test_x4_from_criteos_file(tmp_path: Path, script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    lines = bars_files.write_train_txt(tmp_path / "train.txt", 3_001, seed=1)
    out = tmp_path / "out"
    script.main(script.Config(kind="x4", input=(str(tmp_path / "train.txt"),), output=str(out), workers=1))
    parts = stratified_parts(np.array([fields[0] == "1" for fields in lines]), 10, 2018)
    numbers = {"test": [0], "val": [1], "train": list(range(2, 10))}
    ids = bars_files.x4_ids(lines, [int(i) for i in np.flatnonzero(parts > 1)])
    positive = sum(fields[0] == "1" for fields in lines)
    for split, chosen in numbers.items():
        rows = [int(i) for i in np.flatnonzero(np.isin(parts, chosen))]
        table = prepared(out, split)
        assert table["Label"].to_pylist() == [int(lines[i][0]) for i in rows]
        assert [list(row.values()) for row in table.select((*DENSE_NAMES, *SPARSE_NAMES)).to_pylist()] == [
            ids[i] for i in rows
        ]
        assert abs(sum(table["Label"].to_pylist()) - positive * len(chosen) / 10) <= len(chosen)
    csv = [",".join(("Label", *BARS_COLUMNS)), *(",".join(lines[i]) for i in np.flatnonzero(parts == 0))]
    md5 = hashlib.md5("".join(f"{line}\n" for line in csv).encode(), usedforsecurity=False).hexdigest()
    assert f"test: the MD5 of its rows as a CSV file is {md5}, not that of BARS' test.csv" in capsys.readouterr().out


def test_x4_from_files_that_are_split_already(tmp_path: Path, script: ModuleType) -> None:
    lines = bars_files.write_train_txt(tmp_path / "train.txt", 500, seed=2)
    parts = {"train": lines[:400], "valid": lines[400:450], "test": lines[450:]}
    for stem, part in parts.items():
        text = [",".join(("Label", *BARS_COLUMNS)), *map(",".join, part)]
        (tmp_path / f"{stem}.csv").write_text("".join(f"{line}\n" for line in text))
    files = {name: (str(tmp_path / f"{stem}.csv"),) for name, stem in (("val", "valid"), ("test", "test"))}
    script.main(script.Config(kind="x4", input=(str(tmp_path / "train.csv"),), output=str(tmp_path / "out"), **files))
    ids = bars_files.x4_ids(lines, list(range(400)))
    found = prepared(tmp_path / "out", "test").select((*DENSE_NAMES, *SPARSE_NAMES)).to_pylist()
    assert [list(row.values()) for row in found] == ids[450:]


def test_x1_from_its_files(tmp_path: Path, script: ModuleType) -> None:
    files = bars_files.write_x1(tmp_path, {"train": 700, "valid": 200, "test": 100}, seed=3)
    names = {name: (str(tmp_path / f"{stem}.csv"),) for name, stem in (("val", "valid"), ("test", "test"))}
    script.main(script.Config(kind="x1", input=(str(tmp_path / "train.csv"),), output=str(tmp_path / "out"), **names))
    seen = {fields[14] for fields in files["train"]}
    for split, stem in (("train", "train"), ("val", "valid"), ("test", "test")):
        table = prepared(tmp_path / "out", split)
        for place, name in enumerate(("label", *DENSE_NAMES)):
            expected = np.array([fields[place] for fields in files[stem]], np.float32)
            assert np.array_equal(table[name].to_numpy(), expected)
        assert [i == 1 for i in table["cat_0"].to_pylist()] == [fields[14] not in seen for fields in files[stem]]
    assert Manifest.load(str(tmp_path / "out")).spec.sparse[0].rows == len(seen) + 2


def test_a_split_of_bars_cannot_be_drawn_otherwise(tmp_path: Path, script: ModuleType) -> None:
    bars_files.write_train_txt(tmp_path / "a", 5, seed=4)
    a = str(tmp_path / "a")
    for kind, options in (("x1", {}), ("x1", {"val": (a,)}), ("x4", {"val": (a,)}), ("x4", {"val_share": 0.1})):
        with pytest.raises(ValueError, match="--val and --test must name the published files of x"):
            script.main(script.Config(kind=kind, input=(a,), output=str(tmp_path / "out"), **options))


def test_shapes_are_as_large_as_published() -> None:
    assert sum(feature.rows for feature in criteo_x1_spec().sparse) == 2_086_303 + 26  # BARS counts no missing values
    assert sum(feature.rows for feature in criteo_x4_spec().sparse) == 910_708 + 39
