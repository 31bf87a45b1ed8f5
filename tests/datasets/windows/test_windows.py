"""Windows of rows in order: which rows each holds, in which order they come, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dlrm_torchrec.datasets.stream import Ranks
from dlrm_torchrec.datasets.synthetic.specs import Drift, drift_spec
from dlrm_torchrec.datasets.windows.by_time import time_windows
from dlrm_torchrec.datasets.windows.config import WindowsConfig
from dlrm_torchrec.datasets.windows.judging import judging_windows
from dlrm_torchrec.datasets.windows.open import list_windows, remaining
from dlrm_torchrec.datasets.windows.window import Window
from tests.datasets.batches import Row, rows_of
from tests.datasets.prepared_files import SPEC, make_table, reference_rows, write_folder, write_manifest

HOUR = 3_600_000_000
ALONE = Ranks(32, 0, 1)


def write_times(
    folder: Path, *, groups: list[list[int]], ordered: bool, kind: pa.DataType
) -> tuple[pa.Table, list[datetime]]:
    """A prepared folder whose column ``at`` has random times of three days; all its rows, and their times."""
    random = np.random.default_rng(1)
    count = sum(map(sum, groups))
    seconds = random.integers(0, 3 * 86_400, count) * (random.random(count) < 0.95)  # many in the first microsecond
    seconds = np.sort(seconds) if ordered else seconds
    times = [datetime(2026, 1, 30, tzinfo=UTC) + timedelta(seconds=int(each)) for each in seconds]
    table = make_table(count).append_column("at", pa.array(times, pa.timestamp("us", "UTC")).cast(kind))
    first = 0
    for number, file in enumerate(groups):
        with pq.ParquetWriter(folder / f"part-{number}.parquet", table.schema, write_statistics=["at"]) as writer:
            for rows in file:
                writer.write_table(table.slice(first, rows), row_group_size=rows)
                first += rows
    write_manifest(folder, {f"part-{number}.parquet": sum(file) for number, file in enumerate(groups)})
    return table.drop_columns("at"), times


def rows_read(window: Window, *, train: bool) -> list[Row]:
    stream = window.train(ALONE, epochs=1, seed=3, lanes=1) if train else window.evaluation(ALONE)
    return rows_of(stream.batches())


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("kind", [pa.timestamp("us", "UTC"), pa.timestamp("s"), pa.timestamp("ns")])
def test_a_window_of_time_has_just_its_rows(tmp_path: Path, ordered: bool, kind: pa.DataType) -> None:
    table, times = write_times(tmp_path, groups=[[100, 37], [90], [73]], ordered=ordered, kind=kind)
    spec, windows = time_windows(str(tmp_path), "at", 6 * HOUR)
    assert spec == SPEC
    expected: dict[str, list[Row]] = {}
    for row, time in zip(reference_rows(table), times, strict=True):
        start = time.replace(hour=time.hour - time.hour % 6)
        name = start.strftime("%Y-%m-%d" if start.hour == 0 else "%Y-%m-%dT%H")
        expected.setdefault(name, []).append(row)
    assert [each.name for each in windows] == sorted(expected)
    for window in windows:
        assert rows_read(window, train=False) == expected[window.name]
        assert Counter(rows_read(window, train=True)) == Counter(expected[window.name])
        assert window.rows == len(expected[window.name])
    assert len({each.digest for each in windows}) == len(windows)
    assert np.allclose(np.diff([each.day for each in windows]), 0.25)


def test_row_groups_within_one_window_are_told_by_their_statistics(tmp_path: Path) -> None:
    write_times(tmp_path, groups=[[60, 60, 60], [60, 60]], ordered=True, kind=pa.timestamp("us", "UTC"))
    read = []
    whole = pq.ParquetFile.read_row_group

    def counted(file: pq.ParquetFile, number: int, **options: Any) -> pa.Table:
        read.append(number)
        return whole(file, number, **options)

    with patch.object(pq.ParquetFile, "read_row_group", counted):
        _, windows = time_windows(str(tmp_path), "at", 24 * HOUR)
    assert sum(each.rows for each in windows) == 300
    assert len(read) <= 2  # those in which a day ends


def test_digests_stay_when_later_rows_are_added(tmp_path: Path) -> None:
    write_times(tmp_path, groups=[[100], [100]], ordered=True, kind=pa.timestamp("us", "UTC"))
    _, whole = time_windows(str(tmp_path), "at", 24 * HOUR)
    write_manifest(tmp_path, {"part-0.parquet": 100})
    _, part = time_windows(str(tmp_path), "at", 24 * HOUR)
    assert part[0].digest == whole[0].digest
    assert part[-1].digest != whole[len(part) - 1].digest


@pytest.mark.parametrize(
    ("column", "kind", "message"),
    [
        (
            "when",
            pa.timestamp("us"),
            r"column 'when' of .* must hold times.*: got no such column among .*; prepare the",
        ),
        ("at", pa.int64(), r"column 'at' of .* must hold times, as timestamps or dates: got int64; .*--keep_time at"),
    ],
)
def test_columns_without_times_are_refused(tmp_path: Path, column: str, kind: pa.DataType, message: str) -> None:
    write_times(tmp_path, groups=[[10]], ordered=True, kind=kind)
    with pytest.raises(ValueError, match=message):
        time_windows(str(tmp_path), column, HOUR)


def test_unknown_times_are_refused(tmp_path: Path) -> None:
    table = make_table(4).append_column("at", pa.array([None, 1, 2, 3], pa.timestamp("us")))
    pq.write_table(table, tmp_path / "part-0.parquet")
    write_manifest(tmp_path, {"part-0.parquet": 4})
    with pytest.raises(ValueError, match=r"times 'at' of .* must all be known: got 1 rows without one; prepare"):
        time_windows(str(tmp_path), "at", HOUR)


def write_days(parent: Path, *names: str) -> None:
    for number, name in enumerate(names):
        (parent / name).mkdir(parents=True)
        write_folder(parent / name, [[20 + number]])
        manifest = json.loads((parent / name / "dataset.json").read_text())
        for file in manifest["splits"]["train"]["files"]:
            file["sha256"] = sha256((parent / name / file["path"]).read_bytes()).hexdigest()
        (parent / name / "dataset.json").write_text(json.dumps(manifest))


def of_folders(parent: Path) -> list[Window]:
    return list_windows(str(parent), SPEC, WindowsConfig(), rows=0, seed=0)[1]


def test_folders_come_in_the_order_of_their_times(tmp_path: Path) -> None:
    write_days(tmp_path, "day_10", "day_9", "day_11")
    (tmp_path / "day_12").mkdir()  # half prepared
    (tmp_path / "notes.txt").touch()
    windows = of_folders(tmp_path)
    assert [each.name for each in windows] == ["day_9", "day_10", "day_11"]
    assert [each.rows for each in windows] == [21, 20, 22]
    assert rows_read(windows[1], train=False) == reference_rows(make_table(20))
    write_days(tmp_path / "dates", "2026-02-28", "2026-03-01", "2026-03-01T06")
    assert np.diff([each.day for each in of_folders(tmp_path / "dates")]).tolist() == [1, 0.25]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], r"data must be a folder of prepared folders, one for each window: got .* without any; prepare the first"),
        (
            ["first"],
            r"names of windows in .* must be times such as 2026-01-31, or end in a number: got 'first'; rename",
        ),
        (["a1", "b01"], r"windows in .* must have distinct times: got a1 and b01; remove one of them"),
    ],
)
def test_folders_that_are_no_windows_are_refused(tmp_path: Path, names: list[str], message: str) -> None:
    write_days(tmp_path, *names)
    with pytest.raises(ValueError, match=message):
        of_folders(tmp_path)


def test_what_is_no_folder_of_days_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path, [[10]])
    with pytest.raises(
        ValueError, match=r"windows of the prepared folder .* must have a column of times: got none; name"
    ):
        of_folders(tmp_path)
    write_days(tmp_path / "days", "1", "2")
    write_manifest(tmp_path / "days" / "2", {"part-0.parquet": 21}, split="val")
    with pytest.raises(
        ValueError, match=r"rows of .*/2 must all be in split 'train'.*: got {'val': 21}; prepare it with"
    ):
        of_folders(tmp_path / "days")


def begun(windows: list[Window]) -> list[dict[str, object]]:
    """What a run keeps of these windows."""
    return [{"name": each.name, "day": each.day, "digest": each.digest} for each in windows]


SKIP = WindowsConfig(missing="skip")


def test_windows_are_trained_on_once_and_in_order(tmp_path: Path) -> None:
    write_days(tmp_path, *(f"2026-01-0{day}" for day in range(1, 6)))
    days = of_folders(tmp_path)
    config = WindowsConfig()
    assert remaining([], days, config, is_open=False) == days
    assert remaining(begun(days[:2]), days, config, is_open=False) == days[2:]
    assert remaining(begun(days[:2]), days, config, is_open=True) == days[1:]
    assert remaining(begun(days[:2]), days[2:], config, is_open=False) == days[2:]  # old days may go
    assert remaining(begun(days), days, config, is_open=False) == []
    with pytest.raises(
        ValueError, match=r"window 2026-01-02 must be there until it is trained on: got none of that name"
    ):
        remaining(begun(days[:2]), days[2:], config, is_open=True)


def test_a_missing_window_is_refused_or_skipped(tmp_path: Path) -> None:
    write_days(tmp_path, *(f"2026-01-0{day}" for day in (1, 2, 4)))
    days = of_folders(tmp_path)
    for trained in ([], days[:2]):
        with pytest.raises(ValueError, match=r"without a gap: got 2026-01-04 after 2026-01-02; bring what is between"):
            remaining(begun(trained), days, WindowsConfig(), is_open=False)
        assert remaining(begun(trained), days, SKIP, is_open=False) == days[len(trained) :]


def test_a_gap_between_two_windows_of_time_is_known_by_their_length(tmp_path: Path) -> None:
    write_times(tmp_path, groups=[[50]], ordered=True, kind=pa.timestamp("us", "UTC"))
    config = WindowsConfig(time="at")
    _, days = list_windows(str(tmp_path), SPEC, config, rows=0, seed=0)
    with pytest.raises(ValueError, match=r"without a gap: got 2026-02-01 after 2026-01-30"):
        remaining([], [days[0], days[2]], config, is_open=False)


def test_a_late_window_is_refused_or_skipped(tmp_path: Path) -> None:
    write_days(tmp_path, *(f"2026-01-0{day}" for day in (1, 2, 3)))
    days = of_folders(tmp_path)
    trained = begun([days[0], days[2]])
    with pytest.raises(
        ValueError, match=r"window 2026-01-02 must come before 2026-01-03, which .*: got it late; remove"
    ):
        remaining(trained, days, WindowsConfig(), is_open=False)
    assert remaining(trained, days, SKIP, is_open=False) == []


def test_a_window_given_twice_or_changed_is_refused(tmp_path: Path) -> None:
    write_days(tmp_path, "2026-01-01", "2026-01-02")
    shutil.copytree(tmp_path / "2026-01-01", tmp_path / "2026-01-03")
    days = of_folders(tmp_path)
    twice = r"rows must be given once: got those of window 2026-01-01 again as window 2026-01-03; remove this copy"
    for trained in ([], begun(days[:2])):
        with pytest.raises(ValueError, match=twice):
            remaining(trained, days, WindowsConfig(), is_open=False)
    trained = [{**each, "digest": "0123"} for each in begun(days[:1])]
    with pytest.raises(
        ValueError, match=r"window 2026-01-01 must hold the rows that the run was trained on: got others"
    ):
        remaining(trained, days[:2], WindowsConfig(), is_open=False)


def test_days_without_checksums_are_told_apart_by_their_names(tmp_path: Path) -> None:
    for name in ("day-1", "day-2"):
        (tmp_path / name).mkdir()
        write_folder(tmp_path / name, [[20]])
    days = of_folders(tmp_path)
    assert remaining([], days, WindowsConfig(), is_open=False) == days


def test_synthetic_days_are_told_by_all_that_their_rows_depend_on() -> None:
    def digests(*, rows: int = 100, seed: int = 0, **drift: float) -> list[str]:
        config = WindowsConfig(days=3, drift=Drift(**drift))
        return [each.digest for each in list_windows("synthetic", drift_spec((50,)), config, rows=rows, seed=seed)[1]]

    found = [digests(), digests(rows=101), digests(seed=1), digests(replaced=0.1), digests(speed=0.1)]
    assert len({digest for each in found for digest in each}) == 15
    assert digests() == found[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"days": 0}, r"number of days must be at least 1: got 0; raise it"),
        ({"length": "0d"}, r"length of a window must be a whole number of s, m, h, d or w: got '0d'; try 1d"),
    ],
)
def test_options_that_make_no_windows_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        WindowsConfig(**options)  # type: ignore[arg-type]  # that is the point


def test_windows_whose_ids_mean_other_values_judge_no_model() -> None:
    def moved(_: str) -> dict[str, Any]:
        raise ValueError("values of feature 'x' must keep their ids")

    def window(name: str, fresh_after: Any) -> Window:
        return Window(
            name=name, day=0.0, rows=1, digest=name, open=lambda *_: pytest.fail("opened"), fresh_after=fresh_after
        )

    same, fresh = (lambda _: {"t": np.array([], np.int64)}), (lambda _: {"t": np.array([3])})
    windows = [window(name, each) for name, each in (("a", moved), ("b", same), ("c", same), ("d", fresh))]
    found = judging_windows(windows, [{"name": "b"}])
    assert {name: each.name for name, each in found.items()} == {"b": "b", "c": "c", "val": "c"}
    with pytest.raises(
        ValueError, match=r"must give ids the meaning that they have to the model: got \['d'\], of which"
    ):
        judging_windows(windows[3:], [{"name": "b"}])
