"""data/census/prepare.py as a user runs it, and the features that it makes of raw columns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dlrm_torchrec.datasets.prepared.manifest import Manifest
from tests.data import load_script
from tests.scripts import run_python

ROOT = Path(__file__).parents[2]
CENSUS = ROOT.parent / "shared/data/census_income_kdd"

needs_census = pytest.mark.skipif(
    not CENSUS.exists(), reason=f"the census files are not in {CENSUS.name}/ beside the repository"
)


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script(ROOT / "data/census/prepare.py")


@needs_census
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], {"train": 159_618, "val": 39_905}),
        (["--val_share", "0.1"], {"train": 143_656, "val": 15_962, "test": 39_905}),
    ],
)
def test_every_row_is_in_its_split(tmp_path: Path, options: list[str], expected: dict[str, int]) -> None:
    command = ["data/census/prepare.py", "--input", str(CENSUS), "--output", str(tmp_path), *options]
    done = run_python(command, ROOT)
    assert done.returncode == 0, done.stderr
    manifest = Manifest.load(str(tmp_path))
    rows = {name: split.rows for name, split in manifest.splits.items()}
    assert sum(rows.values()) == 159_618 + 39_905
    assert rows == pytest.approx(expected, rel=0.02)  # a share by hash is not exact
    assert rows[list(expected)[-1]] == 39_905
    assert manifest.report["rows_quarantined"] == 0


@needs_census
def test_the_features_are_those_of_the_raw_files(tmp_path: Path, script: ModuleType) -> None:
    script.main(script.Config(input=str(CENSUS), output=str(tmp_path)))
    manifest = Manifest.load(str(tmp_path))
    raw = pq.read_table(CENSUS / "test.parquet").to_pydict()
    got = pq.read_table(tmp_path / manifest.splits["val"].files[0].path)
    assert got["income_50k"].to_pylist() == [float(text == "' 50000+.'") for text in raw["income_50k"]]
    for name in script.DENSE:
        np.testing.assert_allclose(got[name].to_numpy(), np.log1p(raw[name]), rtol=1e-6)
    expected = {name: raw[name] for name in script.SPARSE}
    expected |= {f"{name}_value": raw[name] for name in script.DENSE}
    # 1 + floor(2 log2 x) = 1 + floor(log2 x^2), which is the number of binary digits of x^2, and 0 for x = 0
    buckets = {f"{name}_bucket": [1 + (x * x).bit_length() for x in raw[name]] for name in script.AMOUNTS}
    assert [feature.name for feature in manifest.spec.sparse] == [*expected, *buckets]
    assert (len(manifest.spec.dense), len(expected), len(buckets)) == (7, 40, 4)
    for name, ids in buckets.items():
        assert got[name].to_pylist() == ids
    for name, values in expected.items():
        number = {value: i for i, value in enumerate(vocabulary(tmp_path, name), start=2)}
        assert got[name].to_pylist() == [0 if value is None else number.get(value, 1) for value in values], name


@needs_census
def test_a_category_seen_once_is_unseen(tmp_path: Path, script: ModuleType) -> None:
    script.main(script.Config(input=str(CENSUS), output=str(tmp_path)))
    raw = pq.read_table(CENSUS / "train.parquet", columns=["wage_per_hour"])["wage_per_hour"].to_pylist()
    values, counts = np.unique(raw, return_counts=True)
    assert (counts == 1).any()
    assert set(vocabulary(tmp_path, "wage_per_hour_value")) == set(values[counts > 1].tolist())


def test_missing_negative_and_fractional_numbers(tmp_path: Path, script: ModuleType) -> None:
    gains = [None, 0, -5, 1, 2, 2.5, 3, 4, 99_999] * 2
    write_census(tmp_path, script, capital_gains=gains)
    script.main(script.Config(input=str(tmp_path), output=str(tmp_path / "out")))
    got = pq.read_table(tmp_path / "out/train/part-00000-000.parquet")
    known = vocabulary(tmp_path / "out", "capital_gains_value")
    values = [None if i == 0 else known[i - 2] for i in got["capital_gains_value"].to_pylist()]  # 0 missing, 1 unseen
    assert values == [None if gain is None else f"{gain:g}" for gain in gains]
    assert got["capital_gains_bucket"].to_pylist() == [0, 1, 1, 2, 4, 4, 5, 6, 35] * 2


def test_unknown_labels_are_quarantined(tmp_path: Path, script: ModuleType) -> None:
    count = 400
    labels = [script.POSITIVE, script.NEGATIVE] * (count // 2)
    for name, odd in (("train", "50000"), ("test", None)):
        write_file(tmp_path / f"{name}.parquet", script, income_50k=[odd, *labels[1:]])
    script.main(script.Config(input=str(tmp_path), output=str(tmp_path / "out")))
    manifest = Manifest.load(str(tmp_path / "out"))
    assert {name: split.rows for name, split in manifest.splits.items()} == {"train": count - 1, "val": count - 1}
    assert manifest.report["reasons"] == {"income_50k is not a known label": 1, "income_50k is missing": 1}


def vocabulary(folder: Path, feature: str) -> list[object]:
    values: list[object] = pq.read_table(folder / "vocab" / f"{feature}.parquet")["value"].to_pylist()
    return values


def write_census(folder: Path, script: ModuleType, **columns: Sequence[object]) -> None:
    for name, values in (("train", columns), ("test", {each: list(v)[::-1] for each, v in columns.items()})):
        write_file(folder / f"{name}.parquet", script, **values)


def write_file(path: Path, script: ModuleType, **columns: Sequence[object]) -> None:
    """A raw file in which the columns that are not given hold one value in all rows."""
    count = len(next(iter(columns.values())))
    default = dict.fromkeys(script.DENSE, [1.0] * count) | dict.fromkeys(script.SPARSE, ["' x'"] * count)
    pq.write_table(
        pa.table(default | {"income_50k": [script.NEGATIVE, *[script.POSITIVE] * (count - 1)]} | columns), path
    )
