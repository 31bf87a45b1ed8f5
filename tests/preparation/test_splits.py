"""Splits by time and by group, on made-up tables, compared with plain Python."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dlrm_torchrec.datasets.prepared.manifest import Manifest
from dlrm_torchrec.preparation.prepare import Source, prepare
from dlrm_torchrec.preparation.readers.columns import Columns
from dlrm_torchrec.preparation.readers.tables import Form, table_reader
from dlrm_torchrec.preparation.splits import Assignment, ByHash, ByTime, Whole
from dlrm_torchrec.schema import DatasetSpec, DenseFeature, SparseFeature
from tests.preparation.prepared_folders import contents
from tests.preparation.test_prepare_ids import rows_of

SPEC = DatasetSpec(
    name="log",
    label="y",
    dense=(DenseFeature(name="row"),),
    sparse=(SparseFeature(name="user", rows=0, encoding="vocab"),),
)
FORM = Columns(spec=SPEC).form
SHARES = (("val", 0.2), ("test", 0.1))
UNIT_BYTES = 2000


def made(
    tmp_path: Path, rng: np.random.Generator, rows: int = 500, users: int = 40
) -> tuple[list[str], dict[str, list[Any]]]:
    """Two files, CSV and Parquet, with the same columns, and all their values; some times and users are missing."""
    known = rng.random(rows) < 0.95
    table: dict[str, list[Any]] = {
        "row": list(range(rows)),
        "y": [i % 2 for i in range(rows)],
        "user": [int(user) if user else None for user in rng.integers(0, users, rows)],
        "time": [
            int(time) if ok else None for time, ok in zip(1_700_000_000 + rng.integers(0, 90, rows), known, strict=True)
        ],
    }
    half = rows // 2
    lines = [
        ",".join("" if value is None else str(value) for value in row[:half])
        for row in [*zip(*table.values(), strict=True)][:half]
    ]
    (tmp_path / "a.csv").write_text("\n".join([",".join(table), *lines]) + "\n")
    rest: dict[str, Any] = {name: values[half:] for name, values in table.items()}
    rest["time"] = pa.array([None if t is None else t * 1000 for t in rest["time"]], pa.timestamp("ms"))
    rest["user"] = pa.array(rest["user"], pa.float64())
    pq.write_table(pa.table(rest), tmp_path / "b", row_group_size=60)
    return [str(tmp_path / "a.csv"), str(tmp_path / "b")], table


def split(paths: list[str], place: Assignment, output: Path, also: str, **options: Any) -> dict[str, list[int]]:
    """The numbers of the rows of each split of a prepared folder."""
    columns = Columns(spec=SPEC, also=(also,))
    sources = [Source(path=path, reader=table_reader(path, columns, Form()), assignment=place) for path in paths]
    manifest = prepare(SPEC, sources, str(output), unit_bytes=UNIT_BYTES, **options)
    assert isinstance(manifest, Manifest)
    return {
        name: [int(row) for file in part.files for row in pq.read_table(output / file.path)["row"].to_pylist()]
        for name, part in manifest.splits.items()
    }


@pytest.mark.parametrize("seed", range(3))
def test_the_latest_rows_are_held_out_and_no_time_is_parted(tmp_path: Path, seed: int) -> None:
    paths, table = made(tmp_path, np.random.default_rng(seed))
    found = split(paths, ByTime("train", SHARES, "time", FORM), tmp_path / "out", "time", workers=2)
    times = table["time"]
    known = [time for time in times if time is not None]

    def start(share: float, below: list[int]) -> int:
        """The first time of the latest ``share`` of rows, tried one by one."""
        return min(below, key=lambda first: abs(sum(time >= first for time in known) - share * len(known)))

    distinct = sorted(set(known))
    test = start(0.1, distinct)
    val = start(0.3, [time for time in distinct if time < test])
    place = ["train" if t is None or t < val else "val" if t < test else "test" for t in times]
    assert found == {name: [i for i, each in enumerate(place) if each == name] for name in ("train", "val", "test")}
    assert sorted(row for rows in found.values() for row in rows) == list(range(len(times)))
    again = split(paths, ByTime("train", SHARES, "time", FORM), tmp_path / "again", "time", workers=1)
    assert again == found
    assert contents(tmp_path / "again") == contents(tmp_path / "out")


def test_too_few_times_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_text(
        "y,row,user,time\n" + "".join(f"{i % 2},{i},u,2024-01-0{1 + i % 2}\n" for i in range(9))
    )
    with pytest.raises(ValueError, match="time 'time' must have more than 2 distinct values to split by: got 2; name"):
        split([str(tmp_path / "a")], ByTime("train", SHARES, "time", FORM), tmp_path / "out", "time")
    with pytest.raises(ValueError, match="time 'user' must hold times: got list"):
        ByTime("train", SHARES, "user", FORM).times(rows_of(np.arange(1), user=[[1]]))


def test_no_user_is_in_two_splits(tmp_path: Path) -> None:
    paths, table = made(tmp_path, np.random.default_rng(0), rows=2000, users=400)
    found = split(paths, ByHash("train", SHARES, "user", FORM), tmp_path / "out", "user")
    users = {name: {table["user"][row] for row in rows} for name, rows in found.items()}
    assert users["train"] | users["val"] | users["test"] == set(table["user"])
    assert len(users["train"]) + len(users["val"]) + len(users["test"]) == len(set(table["user"]))
    assert None in users["train"]
    assert all(len(found[name]) > 20 for name in ("val", "test"))


def test_groups_are_shared_out_by_their_meaning() -> None:
    place = ByHash("train", SHARES, "user", FORM)
    ids = np.arange(20_000)
    found = place(rows_of(ids, user=ids))
    np.testing.assert_allclose([Counter(found.tolist())[i] / len(ids) for i in range(3)], [0.2, 0.1, 0.7], atol=0.015)
    for same in (ids.astype(str).tolist(), ids.astype(float), [f" {i}.0" for i in ids]):
        np.testing.assert_array_equal(place(rows_of(ids, user=same)), found)


def test_times_of_any_kind_are_one_time() -> None:
    moment = datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)
    second = int(moment.timestamp())
    place = ByTime("train", SHARES, "time", FORM)
    for time in (second, second * 1000, moment, "2024-05-06T07:08:09", str(second), "2024-05-06 07:08:09+00:00"):
        times, known = place.times(rows_of(np.arange(1), time=[time]))
        assert (times.tolist(), known.tolist()) == ([second * 1_000_000], [True])


def test_a_file_given_twice_is_refused(tmp_path: Path) -> None:
    text = "y,row,user\n" + "".join(f"{i % 2},{i},u\n" for i in range(9))
    for name in ("a", "b", "c"):
        (tmp_path / name).write_text(text if name != "c" else text.replace(",u\n", ",v\n"))
    for name in ("header1", "header2"):
        (tmp_path / name).write_text(text.partition("\n")[0] + "\n")

    def sources(*names: str, split: str = "train") -> list[Source]:
        paths = [str(tmp_path / name) for name in names]
        readers = [table_reader(path, Columns(spec=SPEC), Form()) for path in paths]
        return [
            Source(path=path, reader=reader, assignment=Whole(split))
            for path, reader in zip(paths, readers, strict=True)
        ]

    with pytest.raises(ValueError, match=r"sources must be different files: got .*/a twice; name it once"):
        prepare(SPEC, sources("a", "c", "a"), str(tmp_path / "out"))
    with pytest.raises(ValueError, match=r"must be different files: got .*/b, a copy of .*/a; leave one of them out"):
        prepare(SPEC, [*sources("a", "c"), *sources("b", split="val")], str(tmp_path / "out"))
    fine = [*sources("a", "b", "header1"), *sources("c", "header2", split="val")]
    assert {name: part.rows for name, part in prepare(SPEC, fine, str(tmp_path / "out")).splits.items()} == {
        "train": 18,
        "val": 9,
    }
