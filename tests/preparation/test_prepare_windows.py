"""Folders that continue each other: ids and scales keep their meaning, and chains that are wrong are refused."""

from __future__ import annotations

import json
import multiprocessing
import random
import re
import shutil
import time
from dataclasses import replace
from itertools import chain, combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dlrm_torchrec.datasets.prepared.manifest import Manifest
from dlrm_torchrec.datasets.profile import main as profile
from dlrm_torchrec.datasets.windows.chain import check_follows, fingerprint
from dlrm_torchrec.datasets.windows.chain import main as check_chain
from dlrm_torchrec.datasets.windows.folders import fresh_rows
from dlrm_torchrec.datasets.windows.vocabulary_changes import vocabulary_changes
from dlrm_torchrec.preparation.prepare import Source, Window, prepare
from dlrm_torchrec.preparation.readers.columns import Columns
from dlrm_torchrec.preparation.readers.raw_parquet import ParquetReader
from dlrm_torchrec.preparation.splits import ByHash, Whole
from dlrm_torchrec.schema import DatasetSpec, DenseFeature, SparseFeature
from tests.preparation.prepared_folders import contents

SPEC = DatasetSpec(
    name="days",
    label="y",
    dense=(DenseFeature(name="x", standardise=True),),
    sparse=(
        SparseFeature(name="city", rows=0, encoding="vocab", min_count=2),
        SparseFeature(name="item", rows=0, encoding="vocab", table="items"),
        SparseFeature(name="seen", rows=0, encoding="vocab", table="items", multi_hot=True),
        SparseFeature(name="shop", rows=22, encoding="vocab"),
        SparseFeature(name="user", rows=100, encoding="managed"),
        SparseFeature(name="price", column="x", rows=9, encoding="bucket"),
    ),
)
VOCABULARIES = [feature for feature in SPEC.sparse if feature.encoding == "vocab"]


def write_day(folder: Path, day: int, rows: int = 400) -> list[Source]:
    """Rows of a day whose values drift, as the file that a tenth of the rows is held out of."""
    draw = np.random.default_rng(day)
    numbers = {name: draw.zipf(1.4, rows) % 50 + 2 * day for name in ("city", "item", "shop", "user")}
    table = pa.table(
        {
            "y": draw.integers(0, 2, rows),
            "x": draw.normal(day, 1 + day, rows),
            "city": [f"city {value}" for value in numbers.pop("city")],
            "seen": [draw.integers(day, day + 9, 2).tolist() for _ in range(rows)],
            **numbers,
        }
    )
    pq.write_table(table, folder / f"day-{day}.parquet", row_group_size=100)
    return sources(folder, day)


def sources(folder: Path, day: int, spec: DatasetSpec = SPEC) -> list[Source]:
    reader, place = ParquetReader(columns=Columns(spec=spec)), ByHash("train", (("val", 0.1),))
    return [Source(path=str(folder / f"day-{day}.parquet"), reader=reader, assignment=place)]


def go_on(folder: Path, day: int, *, output: str = "", **options: Any) -> Manifest:
    window = options.pop("window", Window(after=str(folder / f"out-{day - 1}")))
    return prepare(
        options.pop("spec", SPEC),
        sources(folder, day),
        str(folder / (output or f"out-{day}")),
        window=window,
        unit_bytes=8_000,
        **options,
    )


@pytest.fixture(scope="module")
def days(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five days, each prepared after the one before."""
    folder = tmp_path_factory.mktemp("days")
    for day in range(1, 6):
        write_day(folder, day)
        window = Window(after=str(folder / f"out-{day - 1}")) if day > 1 else Window(headroom=0.25, max_age=2)
        go_on(folder, day, window=window)
    return folder


def words(folder: Path, feature: SparseFeature) -> list[Any]:
    return [None, "unseen", *pq.read_table(folder / f"vocab/{feature.table_name}.parquet")["value"].to_pylist()]


def rows(folder: Path, split: str = "train") -> pa.Table:
    return pa.concat_tables(pq.read_table(folder / f.path) for f in Manifest.load(str(folder)).splits[split].files)


@pytest.mark.parametrize("day", range(1, 6))
def test_ids_are_those_of_the_vocabulary_and_scales_those_of_the_first_day(days: Path, day: int) -> None:
    raw, folder = pq.read_table(days / f"day-{day}.parquet"), days / f"out-{day}"
    manifest, first = (Manifest.load(str(days / f"out-{each}")) for each in (day, 1))
    is_val = ByHash("train", (("val", 0.1),)).of_numbers(np.arange(1, raw.num_rows + 1)) == 0
    for split, chosen in (("train", ~is_val), ("val", is_val)):
        got, wanted = rows(folder, split), raw.filter(pa.array(chosen))
        for feature in VOCABULARIES:
            known = words(folder, feature)
            ids, values = got[feature.name].to_pylist(), wanted[feature.name].to_pylist()
            if feature.multi_hot:
                ids, values = (list(chain.from_iterable(each)) for each in (ids, values))
            assert all(
                known[id_] == (value if value in known else "unseen") for id_, value in zip(ids, values, strict=True)
            )
        scale = first.spec.dense[0]
        assert scale.mean is not None
        np.testing.assert_allclose(got["x"], (wanted["x"].to_numpy() - scale.mean) / scale.deviation, atol=1e-5)
        assert got.schema.field("user").type == pa.int64()
    assert manifest.spec.dense == first.spec.dense
    assert manifest.spec.sparse[-1].boundaries == first.spec.sparse[-1].boundaries
    assert [feature.rows for feature in manifest.spec.sparse] == [feature.rows for feature in first.spec.sparse]
    assert manifest.spec.sparse[3].rows == 22


def test_a_value_keeps_its_id_and_the_report_says_what_changed(days: Path) -> None:
    told = set[str]()
    for day in range(2, 6):
        folders = [str(days / f"out-{each}") for each in (day - 1, day)]
        before, after = map(Manifest.load, folders)
        assert after.lineage is not None
        check_follows(after, before, (folders[1], folders[0]))
        changes = vocabulary_changes(*folders)
        assert changes.keys() == {feature.name for feature in VOCABULARIES}
        for feature in VOCABULARIES:
            change, report = changes[feature.name], after.lineage.changes[feature.table_name]
            assert change.stable
            assert report.added == len(change.fresh) == len(change.added) + len(change.replaced)
            evicted = report.evicted_by_age + report.evicted_by_count
            assert evicted == len(change.removed) + len(change.replaced)
            told |= {
                name for name in ("added", "returned", "evicted_by_age", "evicted_by_count") if getattr(report, name)
            }
        assert len(after.lineage.lines()) == 3
    assert told == {"added", "returned", "evicted_by_age", "evicted_by_count"}


def test_rows_begin_anew_where_days_are_left_out(days: Path) -> None:
    """A value that lost its id in between and has another one now does not find its row again."""
    stable = set[bool]()
    for before, after in combinations(range(1, 6), 2):
        folders = str(days / f"out-{after}"), str(days / f"out-{before}")
        found = fresh_rows(*folders)
        for feature in VOCABULARIES:
            old, new = (words(days / f"out-{day}", feature) for day in (before, after))
            differ = [i for i, value in enumerate(new) if i > 1 and value is not None and value != old[i]]
            assert found.get(f"t_{feature.table_name}", np.array([])).tolist() == differ
            stable.add(all(old.index(value) == i for i, value in enumerate(new) if value in old and value is not None))
        if not all(change.stable for change in vocabulary_changes(*reversed(folders)).values()):
            with pytest.raises(ValueError, match=r"must keep their ids from .* to .*: got others, or another number"):
                fresh_rows(*reversed(folders))
    assert stable == {True, False}


def test_profiling_a_folder_does_not_break_its_chain(days: Path, tmp_path: Path) -> None:
    shutil.copytree(days / "out-1", tmp_path / "moved")
    profile(str(tmp_path / "moved"))
    moved, second, third = (Manifest.load(str(path)) for path in (tmp_path / "moved", days / "out-2", days / "out-3"))
    assert moved.statistics
    check_follows(second, moved, ("second", "moved"))
    with pytest.raises(
        ValueError, match=r"third must continue moved, whose .* got one that follows [0-9a-f]{12}; name"
    ):
        check_follows(third, moved, ("third", "moved"))
    with pytest.raises(ValueError, match=r"first must continue second, .* got one that follows no folder; name"):
        check_follows(moved, second, ("first", "second"))
    changed = replace(moved, splits={name: split for name, split in moved.splits.items() if name == "train"})
    assert fingerprint(changed) != fingerprint(moved)


def test_the_command_checks_a_chain(days: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [str(days / f"out-{day}") for day in range(1, 6)]
    check_chain(tuple(folders))
    first, *_, last = capsys.readouterr().out.splitlines()
    assert re.fullmatch(rf"{folders[0]}: window 1, (\d+) values with an id, \1 new, 0 of them .*, 0 evicted; .*", first)
    fifth = Manifest.load(folders[-1])
    assert last.endswith(f"evicted; fingerprint {fingerprint(fifth)[:12]}")
    with pytest.raises(ValueError, match=r"out-4 must continue .*out-2, .*name the folders in their order"):
        check_chain((folders[1], folders[3]))
    plain = replace(fifth, lineage=None)
    assert fingerprint(plain) != fingerprint(fifth)


def test_tables_without_headroom_grow(days: Path, tmp_path: Path) -> None:
    for day in (1, 2, 3):
        shutil.copy(days / f"day-{day}.parquet", tmp_path)
    first = go_on(tmp_path, 1, window=Window())
    second = go_on(tmp_path, 2)
    third = go_on(tmp_path, 3)
    sizes = [[feature.rows for feature in each.spec.sparse[:4]] for each in (first, second, third)]
    assert sizes[0][0] < sizes[1][0] < sizes[2][0]
    assert sizes[0][1] < sizes[1][1] < sizes[2][1]
    assert [each[3] for each in sizes] == [22, 22, 22]
    assert third.lineage is not None
    assert third.lineage.window == 3
    assert third.lineage.changes["items"].evicted_by_age == 0
    assert len(third.lineage.sources) == 3


def test_wrong_chains_are_refused(days: Path, tmp_path: Path) -> None:
    for day in (1, 2, 3):
        shutil.copy(days / f"day-{day}.parquet", tmp_path)
    prepare(SPEC, sources(tmp_path, 1), str(tmp_path / "plain"))
    with pytest.raises(
        ValueError, match=r"folder .*/plain must have kept the counts of its values .* with --keep_counts"
    ):
        go_on(tmp_path, 2, window=Window(after=str(tmp_path / "plain")))
    with pytest.raises(
        ValueError, match=r"headroom and max_age must be set for the first window only: got 0.5 and 0 aft"
    ):
        Window(after="x", headroom=0.5)
    with pytest.raises(ValueError, match=r"headroom and max_age must be at least 0: got 0.0 and -1; raise them"):
        Window(max_age=-1)
    two = replace(SPEC, sparse=(replace(SPEC.sparse[3], rows=2),))
    with pytest.raises(
        ValueError, match=r"rows of vocab feature 'shop' must be more than 2, or 0 to be counted: got 2"
    ):
        prepare(two, sources(tmp_path, 1, two), str(tmp_path / "two"), window=Window())

    (tmp_path / "again.parquet").write_bytes((tmp_path / "day-1.parquet").read_bytes())
    (source,) = sources(tmp_path, 1)
    for path in ("day-1.parquet", "again.parquet"):
        twice = [replace(source, path=str(tmp_path / path))]
        with pytest.raises(
            ValueError, match=rf"must be new in each window: got .*/{path}, whose rows an earlier window"
        ):
            prepare(SPEC, twice, str(tmp_path / "twice"), window=Window(after=str(days / "out-2")))
    held_out = [*sources(tmp_path, 3), replace(source, assignment=Whole("val"))]  # the same rows judge every day
    held_out[0] = replace(held_out[0], assignment=Whole("train"))
    prepare(SPEC, held_out, str(tmp_path / "held-out"), window=Window(after=str(days / "out-2")))

    other = replace(SPEC, sparse=(replace(SPEC.sparse[0], min_count=3), *SPEC.sparse[1:]))
    with pytest.raises(ValueError, match=r"features of the spec must be those of .*: got others for \['city'\]; use"):
        go_on(tmp_path, 3, spec=other, window=Window(after=str(days / "out-2")))

    shutil.copytree(days / "out-2", tmp_path / "out-2")
    counts = tmp_path / "out-2/counts/items.parquet"
    counts.write_bytes(counts.read_bytes()[:-9] + b"corrupted")
    with pytest.raises(ValueError, match=r"counts .*/items.parquet must have the SHA-256 of dataset.json, .*; restore"):
        go_on(tmp_path, 3)
    data = json.loads((tmp_path / "out-2/dataset.json").read_text())
    data["lineage"]["changes"]["city"]["added"] = "many"
    (tmp_path / "out-2/dataset.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match=r"added of changes of 'city' must be a whole number: got 'many'"):
        Manifest.load(str(tmp_path / "out-2"))


def test_a_killed_day_ends_like_an_undisturbed_one(days: Path, tmp_path: Path) -> None:
    shutil.copytree(days / "out-2", tmp_path / "out-2")
    shutil.copy(days / "day-3.parquet", tmp_path)
    moment, output = random.Random(3), tmp_path / "out-3"
    begin = time.monotonic()
    go_on(tmp_path, 3, output="whole", workers=2)
    seconds = time.monotonic() - begin
    for _ in range(4):
        process = multiprocessing.get_context("fork").Process(target=lambda: go_on(tmp_path, 3, workers=2))
        process.start()
        time.sleep(moment.uniform(0, seconds))
        process.kill()
        process.join()
    if not (output / "dataset.json").exists():
        changed = Manifest.load(str(tmp_path / "out-2"))
        begun = (output / "work/command.json").exists()
        if begun:
            replace(changed, sources=()).save(str(tmp_path / "out-2"))
            with pytest.raises(ValueError, match=r"must be continued with the command that began it: got other window"):
                go_on(tmp_path, 3)
            changed.save(str(tmp_path / "out-2"))
        go_on(tmp_path, 3, workers=1)
    else:
        shutil.rmtree(output / "work", ignore_errors=True)
    assert contents(output) == contents(tmp_path / "whole") == contents_moved(days / "out-3", days, tmp_path)


def contents_moved(folder: Path, old: Path, new: Path) -> dict[str, bytes]:
    """The files of a folder, with the paths of its sources in another folder."""
    return {name: data.replace(str(old).encode(), str(new).encode()) for name, data in contents(folder).items()}
