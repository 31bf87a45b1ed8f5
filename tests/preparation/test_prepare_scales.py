"""Numbers that are standardised, bucketed or read as times, against plain NumPy, for any cut into units."""

from __future__ import annotations

import datetime
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dlrm_torchrec.datasets.prepared.manifest import Manifest
from dlrm_torchrec.preparation.passes.scales import Moments, boundaries, in_order
from dlrm_torchrec.preparation.prepare import Source, prepare
from dlrm_torchrec.preparation.readers.columns import Columns
from dlrm_torchrec.preparation.readers.raw_parquet import ParquetReader
from dlrm_torchrec.preparation.splits import ByHash, Whole
from dlrm_torchrec.schema import DatasetSpec, DenseFeature, SparseFeature
from tests.preparation.prepared_folders import contents

SPEC = DatasetSpec(
    name="scales",
    label="y",
    dense=(
        DenseFeature(name="x", standardise=True, default=None),
        DenseFeature(name="x missing", column="x", part="missing"),
        DenseFeature(name="log", column="x", log1p=True, standardise=True, default=3.0),
        DenseFeature(name="days", column="when", part="days", standardise=True, default=None),
        DenseFeature(name="constant", standardise=True),
    ),
    sparse=(
        SparseFeature(name="bucket", column="x", rows=9, encoding="bucket"),
        SparseFeature(name="fixed", column="x", rows=4, encoding="bucket", boundaries=(-1.0, 2.5)),
        SparseFeature(name="exact", column="x", part="number", rows=0, encoding="vocab"),
        SparseFeature(name="hour", column="when", part="hour", rows=0, encoding="vocab"),
        SparseFeature(name="weekday", column="when", part="weekday", rows=0, encoding="vocab"),
    ),
)


def columns(rows: int) -> tuple[np.ndarray, np.ndarray, pa.Table]:
    random = np.random.default_rng(5)
    x = np.round(random.normal(3, 9, rows), 1)
    x[random.random(rows) < 0.4] = 0  # a value with more rows than a bucket
    x[random.random(rows) < 0.1] = np.nan
    when = random.integers(1_600_000_000, 1_700_000_000, rows).astype(float)
    when[random.random(rows) < 0.1] = np.nan
    table = pa.table(
        {
            "y": random.integers(0, 2, rows),
            "x": pa.array(x, from_pandas=True),
            "when": pa.array(when, from_pandas=True).cast(pa.int64()),
            "constant": [7.0] * rows,
        }
    )
    return x, when, table


def prepared(folder: Path, path: Path, unit_bytes: int, workers: int) -> Manifest:
    source = Source(
        path=str(path), reader=ParquetReader(columns=Columns(spec=SPEC)), assignment=ByHash("train", (("val", 0.3),))
    )
    return prepare(SPEC, [source], str(folder), unit_bytes=unit_bytes, workers=workers)


def read(folder: Path, split: str) -> pa.Table:
    return pa.concat_tables(pq.read_table(folder / f.path) for f in Manifest.load(str(folder)).splits[split].files)


def test_scales_are_those_of_the_training_rows_for_any_number_of_workers(tmp_path: Path) -> None:
    x, when, table = columns(6000)
    pq.write_table(table, tmp_path / "raw.parquet", row_group_size=700)
    manifest = prepared(tmp_path / "one", tmp_path / "raw.parquet", 20_000, 1)
    prepared(tmp_path / "three", tmp_path / "raw.parquet", 20_000, 3)
    assert contents(tmp_path / "one") == contents(tmp_path / "three")
    assert len(manifest.splits["train"].files) > 2

    place = ByHash("train", (("val", 0.3),)).of_numbers(np.arange(1, 6001))
    is_train = place == place.max()
    for split, rows in (("train", is_train), ("val", ~is_train)):
        got = read(tmp_path / "one", split)
        mean, deviation = np.nanmean(x[is_train]), np.nanstd(x[is_train])
        np.testing.assert_allclose(got["x"], np.nan_to_num((x[rows] - mean) / deviation), atol=2e-6)
        assert got["x missing"].to_pylist() == np.isnan(x[rows]).tolist()
        log = np.log1p(np.maximum(np.where(np.isnan(x), 3.0, x), 0))
        np.testing.assert_allclose(got["log"], (log[rows] - log[is_train].mean()) / log[is_train].std(), atol=2e-6)
        days = when / 86_400
        scaled = (days[rows] - np.nanmean(days[is_train])) / np.nanstd(days[is_train])
        np.testing.assert_allclose(got["days"], np.nan_to_num(scaled), atol=2e-6)
        assert set(got["constant"].to_pylist()) == {0.0}
        fixed = np.select([np.isnan(x[rows]), x[rows] < -1, x[rows] < 2.5], [0, 1, 2], 3)
        assert got["fixed"].to_pylist() == fixed.tolist()
        bounds = manifest.spec.sparse[0].boundaries
        expected = np.where(np.isnan(x[rows]), 0, 1 + np.searchsorted(bounds, x[rows], side="right"))
        assert got["bucket"].to_pylist() == expected.tolist()
        moments = [None if w != w else datetime.datetime.fromtimestamp(w, datetime.UTC) for w in when[rows]]
        hours = [None if moment is None else moment.hour for moment in moments]
        weekdays = [None if moment is None else moment.weekday() for moment in moments]
        for name, wanted in (("hour", hours), ("weekday", weekdays)):
            known = pq.read_table(tmp_path / "one" / "vocab" / f"{name}.parquet")["value"].to_pylist()
            assert [None if i == 0 else known[i - 2] for i in got[name].to_pylist()] == wanted
    known = pq.read_table(tmp_path / "one" / "vocab" / "exact.parquet")["value"].to_pylist()
    count = Counter(np.round(x[is_train & ~np.isnan(x)] + 0.0, 1).tolist())
    spelled = {f"{value:g}" if value == int(value) else repr(value): n for value, n in count.items()}
    assert set(known) == set(spelled)
    assert known[0] == "0"
    assert [spelled[value] for value in known] == sorted(spelled.values(), reverse=True)


@pytest.mark.parametrize("most", [1, 3, 30, 500])
def test_buckets_hold_equally_many_rows_around_heavy_values(most: int) -> None:
    random = np.random.default_rng(most)
    values = np.concatenate([random.normal(size=4000) * 1e-3, np.zeros(3000), random.lognormal(3, 2, 3000)])
    values, counts = np.unique(values, return_counts=True)
    table = pa.table({"value": in_order(pa.array(values)), "count": counts})
    found = boundaries([table.slice(0, 1234), table.slice(1234)], int(counts.sum()), most)
    assert found == sorted(set(found))
    assert set(found) <= set(values)
    assert len(found) == most
    held = np.bincount(np.searchsorted(found, values, side="right"), weights=counts)
    light = held[held < 3000]
    assert (held.max() >= 3000) == bool(len(light) < len(held))
    if most >= 30:
        assert light.max() <= 2 * 7000 / most  # the value 0 alone has more than its share
        assert 0.0 in found


def test_order_of_numbers_is_kept() -> None:
    values = np.array([-np.inf, -1e300, -2.5, -5e-324, -0.0, 0.0, 5e-324, 1.0, 1.0000000000000002, 1e300, np.inf])
    keys = in_order(pa.array(values)).to_numpy()
    assert (np.diff(keys) > 0).tolist() == (np.diff(values) > 0).tolist()
    assert keys[4] == keys[5]
    assert in_order(pa.array([None, 1.0])).null_count == 1


def test_moments_of_parts_add_up() -> None:
    raw = np.random.default_rng(0).normal(1e6, 1, 5000)
    raw[::7] = np.nan
    feature = DenseFeature(name="x", standardise=True, default=None)
    parts = sum((Moments.of(part, feature) for part in np.array_split(raw, 13)), Moments())
    scaled = parts.standardise(feature)
    stored = raw.astype(np.float32).astype(float)
    assert scaled.mean == pytest.approx(np.nanmean(stored), rel=1e-12)
    assert scaled.deviation == pytest.approx(np.nanstd(stored), rel=1e-9)
    assert Moments.of(np.array([np.nan]), feature) + Moments() == Moments()


def test_rows_of_tomorrow_get_the_vocabularies_and_scales_of_today(tmp_path: Path) -> None:
    x, _, table = columns(3000)
    pq.write_table(table.slice(0, 2000), tmp_path / "today.parquet")
    tomorrow = table.slice(2000).set_column(1, "x", pa.array(np.round(x[2000:] + 1000.25, 2), from_pandas=True))
    pq.write_table(tomorrow, tmp_path / "tomorrow.parquet")

    def source(name: str) -> list[Source]:
        reader = ParquetReader(columns=Columns(spec=SPEC))
        return [Source(path=str(tmp_path / f"{name}.parquet"), reader=reader, assignment=Whole("train"))]

    today = prepare(SPEC, source("today"), str(tmp_path / "a"))
    later = prepare(SPEC, source("tomorrow"), str(tmp_path / "b"), earlier=str(tmp_path / "a"))
    assert later.spec == today.spec
    for feature in today.spec.sparse[2:]:
        assert feature.vocabulary
        path = f"vocab/{feature.name}.parquet"
        assert pq.read_table(tmp_path / "a" / path) == pq.read_table(tmp_path / "b" / path)
    got = read(tmp_path / "b", "train")
    first = today.spec.dense[0]
    assert first.mean is not None
    assert first.deviation is not None
    stored = np.nan_to_num((x[2000:] + 1000.25 - first.mean) / first.deviation)
    np.testing.assert_allclose(got["x"], stored, rtol=1e-5, atol=1e-5)
    assert set(got["exact"].to_pylist()) <= {0, 1}
    assert later.report["splits"]["train"]["unseen"]["exact"] == int((~np.isnan(x[2000:])).sum())

    other = DatasetSpec(**{**vars(SPEC), "sparse": SPEC.sparse[1:]})
    with pytest.raises(ValueError, match=r"features of the spec must be those of .*: got others for \['bucket'\]"):
        prepare(other, source("tomorrow"), str(tmp_path / "c"), earlier=str(tmp_path / "a"))
    with pytest.raises(ValueError, match=r"decimal of the spec must be that of .*: got ',' in place of '\.'"):
        prepare(
            DatasetSpec(**{**vars(SPEC), "decimal": ","}),
            source("tomorrow"),
            str(tmp_path / "c"),
            earlier=str(tmp_path / "a"),
        )
