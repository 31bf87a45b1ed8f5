"""`data/criteo/prepare.py table` on files of one's own, in small copies of what people have."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dlrm_torchrec.datasets.prepared.manifest import Manifest
from dlrm_torchrec.datasets.stream import Ranks
from dlrm_torchrec.datasets.windows.by_time import time_windows
from tests.data import load_script
from tests.preparation.prepared_folders import contents

ROOT = Path(__file__).parents[2]
CITIES = {"name": "city", "rows": 0, "encoding": "vocab"}
SPEC = {"name": "log", "label": "label", "dense": [{"name": "price"}], "sparse": [CITIES]}
Prepare = Callable[..., Manifest]


@pytest.fixture
def prepare(tmp_path: Path) -> Prepare:
    """Prepares files of the test's folder with a spec; all rows are training rows unless options say else."""
    script: ModuleType = load_script(ROOT / "data/criteo/prepare.py")

    def run(*names: str, spec: Any = SPEC, output: str = "out", **options: Any) -> Manifest:
        (tmp_path / "spec.json").write_text(json.dumps(spec))
        config = script.Config(
            kind="table",
            spec=str(tmp_path / "spec.json"),
            input=tuple(str(tmp_path / name) for name in names),
            output=str(tmp_path / output),
            **{"val_share": 0.0} | options,
        )
        script.main(config)
        return Manifest.load(config.output)

    return run


def rows_of(folder: Path, split: str = "train") -> list[dict[str, Any]]:
    """Prepared rows, with the words of the vocabulary of ``city`` in place of ids."""
    vocabulary = folder / "vocab/city.parquet"
    words = [None, "unseen", *pq.read_table(vocabulary)["value"].to_pylist()] if vocabulary.exists() else None
    files = Manifest.load(str(folder)).splits[split].files
    rows = [row for file in files for row in pq.read_table(folder / file.path).to_pylist()]
    return [row | {"city": words[row["city"]]} for row in rows] if words else rows


WANTED: list[dict[str, Any]] = [
    {"label": 1.0, "price": 0.25, "city": 4},
    {"label": 0.0, "price": -0.5, "city": 7},
    {"label": 1.0, "price": 2.0, "city": 4},
    {"label": 0.0, "price": 0.0, "city": None},
]


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("label, price, city\n1, 0.25, 4\n0, -0.5, 7\n1, 2, 4\n0, , \n", {}),
        ("label\tprice\tcity\n1\t0.25\t4\n0\t-0.5\t7\n1\t2\t4\n0\t\t\n", {"separator": "\\t"}),
        ("1::0.25::4\n0::-0.5::7\n1::2::4\n0::::\n", {"columns": ("label", "price", "city")}),
        ('"label";"price";"city"\r\n1;"0.25";"4"\r\n0;-0.5;"7"\r\n1;2;4\r\n0;NA;\\N\r\n', {}),
        ("label,price,city\n1,0.25,4\n0,-0.5,7\n1,2,4\n0,null,NaN\n", {}),
    ],
)
def test_text_as_people_write_it(tmp_path: Path, prepare: Prepare, text: str, options: dict[str, Any]) -> None:
    (tmp_path / "log").write_text(text, newline="")
    prepare("log", **options)
    assert rows_of(tmp_path / "out") == WANTED


@pytest.mark.parametrize(
    "names", [["x.pq"], ["x.PARQUET"], ["spark"], ["spark/part-*"], ["spark/part-1", "spark/part-0"]]
)
def test_parquet_under_any_name(tmp_path: Path, prepare: Prepare, names: list[str]) -> None:
    table = {name: pa.array([row[name] for row in WANTED]) for name in ("label", "price", "city")}
    (tmp_path / "spark").mkdir()
    for name in ("x.pq", "x.PARQUET"):
        pq.write_table(pa.table(table), tmp_path / name)
    for part in range(2):
        pq.write_table(pa.table(table).slice(2 * part, 2), tmp_path / f"spark/part-{part}")
    (tmp_path / "spark/_SUCCESS").write_text("")
    (tmp_path / "spark/.part-0.crc").write_bytes(b"crc")
    prepare(*names)
    assert rows_of(tmp_path / "out") == WANTED


@pytest.mark.parametrize("compression", ["csv.gz in plain", "two parts"])
def test_a_part_without_values_counts_as_missing(tmp_path: Path, prepare: Prepare, compression: str) -> None:
    full = pa.table({"label": [1, 0], "price": [1.5, None], "city": [3, 4]})
    empty = pa.table({"label": [1, 0], "price": pa.nulls(2), "city": pa.nulls(2)})
    pq.write_table(full, tmp_path / "a")
    pq.write_table(empty, tmp_path / "b")
    if compression == "csv.gz in plain":
        (tmp_path / "b").write_bytes(gzip.compress(b"label,price,city\n1,,\n0,,\n"))
    prepare("a", "b")
    found = [(row["price"], row["city"]) for row in rows_of(tmp_path / "out")]
    assert found == [(1.5, 3), (0.0, 4), (0.0, None), (0.0, None)]


def test_columns_with_dots_are_told_apart(tmp_path: Path, prepare: Prepare) -> None:
    pq.write_table(
        pa.table({"label": [1, 0], "user": [5, 6], "user.city": ["a", "b"], "user.price": [1, 2]}), tmp_path / "a"
    )
    names = ("user", "user.city")
    sparse = [{"name": name, "rows": 9, "encoding": "hash"} for name in names]
    prepare("a", spec=SPEC | {"dense": [{"name": "user.price"}], "sparse": sparse})
    rows = rows_of(tmp_path / "out")
    assert [row["user.price"] for row in rows] == [1, 2]
    assert all(len({row[name] for row in rows}) == 2 for name in names)


def structs() -> Any:
    return pa.array([{"a": 1}, {"a": 2}])


# the values of a column of each type, and what its categories are; None if it must be refused
TYPES: dict[str, tuple[Any, Any]] = {
    "int8": (pa.array([1, 2], pa.int8()), [1, 2]),
    "uint64": (pa.array([1, 2], pa.uint64()), [1, 2]),
    "bool": (pa.array([True, False]), [1, 0]),
    "float": (pa.array([1.0, 2.0], pa.float32()), [1, 2]),
    "halffloat": (pa.array(np.array([1, 2], np.float16)), [1, 2]),
    "decimal": (pa.array([Decimal("1.00"), Decimal("2.00")]), [1, 2]),
    "binary": (pa.array([b"a", b"b"]), ["a", "b"]),
    "fixed binary": (pa.array([b"aa", b"bb"], pa.binary(2)), ["aa", "bb"]),
    "large_string": (pa.array(["a", "b"], pa.large_string()), ["a", "b"]),
    "string_view": (pa.array(["a", "b"], pa.string_view()), ["a", "b"]),
    "dictionary": (pa.array(["a", "b"]).dictionary_encode(), ["a", "b"]),
    "date": (pa.array([date(2024, 1, 2), date(2024, 1, 3)]), ["2024-01-02", "2024-01-03"]),
    "timestamp": (pa.array([datetime(2024, 1, 2), datetime(2024, 1, 3)], pa.timestamp("s")),
        [f"2024-01-0{day} 00:00:00" for day in (2, 3)]),
    "time": (pa.array([time(1), time(2)], pa.time32("s")), ["01:00:00", "02:00:00"]),
    "duration": (pa.array([timedelta(1), timedelta(2)]), None),
    "struct": (structs(), None),
    "map": (pa.array([[("a", 1)], [("b", 2)]], pa.map_(pa.string(), pa.int64())), None),
    "list of lists": (pa.array([[[1]], [[2]]]), None),
}  # fmt: skip


@pytest.mark.parametrize("kind", TYPES)
def test_every_type_is_read_or_refused_with_its_name(tmp_path: Path, prepare: Prepare, kind: str) -> None:
    values, wanted = TYPES[kind]
    pq.write_table(pa.table({"label": [1, 0], "price": [1, 2], "city": values}), tmp_path / "a")
    if wanted is None:
        with pytest.raises(ValueError, match="column 'city' must hold .*: got " + str(values.type)[:4]):
            prepare("a")
        return
    prepare("a")
    assert [row["city"] for row in rows_of(tmp_path / "out")] == wanted


@pytest.mark.parametrize("kind", ["list", "large_list", "fixed_size_list", "list<dictionary>", "list_view"])
def test_lists_of_every_type_are_bags(tmp_path: Path, prepare: Prepare, kind: str) -> None:
    values: dict[str, Any] = {
        "list": pa.array([[1, 2], [3, 3]]),
        "large_list": pa.array([[1, 2], [3, 3]], pa.large_list(pa.int64())),
        "fixed_size_list": pa.array([[1, 2], [3, 3]], pa.list_(pa.int64(), 2)),
        "list<dictionary>": pa.ListArray.from_arrays([0, 2, 4], pa.array(["1", "2", "3", "3"]).dictionary_encode()),
        "list_view": pa.array([[1, 2], [3, 3]], pa.list_view(pa.int64())),
    }
    pq.write_table(pa.table({"label": [1, 0], "price": [1, 2], "city": values[kind]}), tmp_path / "a")
    prepare("a", spec=SPEC | {"sparse": [{"name": "city", "rows": 5, "multi_hot": True}]})
    assert [row["city"] for row in rows_of(tmp_path / "out")] == [[1, 2], [3, 3]]


def test_any_number_of_workers_writes_the_same_folder(
    tmp_path: Path, prepare: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    words = ["two\nlines", 'a "quoted" word', "a, b", "plain", "other"]
    with (tmp_path / "log").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["label", "price", "city"])
        for i in range(3000):
            writer.writerow([i % 2, round(float(rng.normal()), 3), words[rng.integers(5)]])
            if i % 500 == 7:
                file.write("1,1,2,3\n")
    monkeypatch.setattr("dlrm_torchrec.preparation.prepare.span_bytes", lambda _: 3000)
    for workers in (1, 3):
        prepare("log", output=f"out{workers}", workers=workers, val_share=0.1)
    first, second = (contents(tmp_path / f"out{workers}") for workers in (1, 3))
    assert first == second
    assert sum(path.startswith("train/") for path in first) > 10
    quarantine = first["quarantine.tsv"].decode().splitlines()[1:]
    lines = (tmp_path / "log").read_bytes().decode().split("\n")
    wanted = [str(i) for i, line in enumerate(lines, 1) if line == "1,1,2,3"]
    assert [row.split("\t")[1:3] for row in quarantine] == [[line, "not 3 columns"] for line in wanted]
    assert Manifest.load(str(tmp_path / "out1")).report["rows_written"] == 3000


def test_a_table_gets_a_validation_split(tmp_path: Path, prepare: Prepare, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "log").write_text("label,price,city\n" + "".join(f"{i % 2},{i},{i}\n" for i in range(400)))
    splits = prepare("log", val_share=None).splits
    assert 20 < splits["val"].rows < 60
    assert splits["val"].rows + splits["train"].rows == 400
    assert "val: 10% of the rows, drawn at random; --val or --val_share 0 changes this" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"time": "price", "val_share": 0.0}, "--time or --group, one of them, must go with table and a share of rows"),
        ({"time": "price", "group": "city", "val_share": 0.1}, "--time or --group, one of them, must go with table"),
        ({"group": "nobody", "val_share": 0.1}, "must have each column of the spec once: got .*, wrong for .'nobody'."),
    ],
)
def test_unfit_options_are_refused(tmp_path: Path, prepare: Prepare, options: dict[str, Any], message: str) -> None:
    (tmp_path / "log").write_text("label,price,city\n1,2,3\n0,2,3\n")
    with pytest.raises(ValueError, match=message):
        prepare("log", **options)


def test_rows_are_split_by_time_and_by_group(tmp_path: Path, prepare: Prepare) -> None:
    lines = [f"{i % 2},{i},{i // 10},2024-01-{1 + i % 30:02}" for i in range(600)]
    (tmp_path / "log").write_text("\n".join(["label,price,city,day", *lines]) + "\n")
    prepare("log", output="time", time="day", val_share=0.1)
    assert {row["price"] % 30 for row in rows_of(tmp_path / "time", "val")} == {27, 28, 29}
    prepare(
        "log",
        output="group",
        group="city",
        val_share=0.2,
        spec=SPEC | {"sparse": [CITIES | {"encoding": "id", "rows": 60}]},
    )
    train, val = ({row["city"] for row in rows_of(tmp_path / "group", split)} for split in ("train", "val"))
    assert not train & val
    assert len(train | val) == 60
    assert val


def test_labels_of_a_second_file(tmp_path: Path, prepare: Prepare) -> None:
    rng = np.random.default_rng(0)
    labels = [str(label) for label in rng.integers(0, 2, 50)]
    keys = [str(key) for key in rng.permutation(50)]
    (tmp_path / "x.csv").write_text("key,price,city\n" + "".join(f"{key},{i},{i}\n" for i, key in enumerate(keys)))
    (tmp_path / "in order").write_text("\n".join(labels) + "\n")
    shuffled = rng.permutation(49)  # the last row has no label
    by_key = {
        "key": pa.array([float(keys[i]) for i in shuffled]),
        "label": pa.array([int(labels[i]) for i in shuffled]),
    }
    pq.write_table(pa.table(by_key), tmp_path / "by key")
    wanted = [(float(label), float(i)) for i, label in enumerate(labels)]
    prepare("x.csv", labels=str(tmp_path / "in order"), output="a")
    assert [(row["label"], row["price"]) for row in rows_of(tmp_path / "a")] == wanted
    prepare("x.csv", labels=str(tmp_path / "by key"), label_key="key", output="b", max_bad_share=0.1)
    assert [(row["label"], row["price"]) for row in rows_of(tmp_path / "b")] == wanted[:-1]
    assert "51\tlabel is missing" in (tmp_path / "b/quarantine.tsv").read_text()
    (tmp_path / "in order").write_text("\n".join(labels[1:]) + "\n")
    with pytest.raises(ValueError, match=r"must have a row for each of the 50 rows of .*: got 49; join them by"):
        prepare("x.csv", labels=str(tmp_path / "in order"), output="c")
    pq.write_table(pa.table({"key": [1, 1], "label": [0, 1]}), tmp_path / "by key")
    with pytest.raises(ValueError, match=r"key 'key' of .* must have a value of its own in each row: got some twice"):
        prepare("x.csv", labels=str(tmp_path / "by key"), label_key="key", output="c")


def test_days_go_on_from_folder_to_folder(tmp_path: Path, prepare: Prepare, capsys: pytest.CaptureFixture[str]) -> None:
    for day, cities in ((1, ["Rome", "Rome", "Oslo"]), (2, ["Lima", "Lima", "Rome"]), (3, ["Oslo", "Lima", "Rome"])):
        lines = [f"{number % 2},{day},{city}" for number, city in enumerate(cities)]
        (tmp_path / f"{day}.csv").write_text("\n".join(["label,price,city", *lines]) + "\n")
    prepare("1.csv", output="one", keep_counts=True, headroom=0.5, max_age=1)
    two = prepare("2.csv", output="two", after=str(tmp_path / "one"))
    prepare("3.csv", output="three", after=str(tmp_path / "two"))
    words = [
        pq.read_table(tmp_path / name / "vocab/city.parquet")["value"].to_pylist() for name in ("one", "two", "three")
    ]
    assert words == [["Rome", "Oslo", None], ["Rome", "Lima", None], ["Rome", "Lima", "Oslo"]]
    assert [row["city"] for row in rows_of(tmp_path / "three")] == ["Oslo", "Lima", "Rome"]
    assert two.lineage is not None
    assert two.lineage.lines()[0] in capsys.readouterr().out
    assert two.lineage.lines() == [
        "city: 2 values in 5 rows, 1 new ('Lima'), 1 evicted by age ('Oslo'), 0 waiting",
    ]
    for options, refusal in (
        ({"headroom": 0.5}, "--headroom and --max_age must go with --keep_counts: got 0.5 and 0; add it"),
        ({"after": "a", "vocabularies": "b"}, "--after and --vocabularies must not go together: got a and b; --after"),
        ({"after": str(tmp_path / "two"), "max_age": 3}, "must be set for the first window only: got 0.0 and 3 after"),
    ):
        with pytest.raises(ValueError, match=refusal):
            prepare("3.csv", output="refused", **options)


def test_times_that_are_kept_cut_a_folder_into_windows(tmp_path: Path, prepare: Prepare) -> None:
    hours = [i * 7 % 60 for i in range(300)]
    lines = [f"{i % 2},{i},{i // 10},2024-01-{1 + hour // 24:02}T{hour % 24:02}:30:00" for i, hour in enumerate(hours)]
    (tmp_path / "log").write_text("\n".join(["label,price,city,at", *lines]) + "\n")
    prepare("log", keep_time="at", row_group_rows=40)
    _, windows = time_windows(str(tmp_path / "out"), "at", 86_400_000_000)
    assert [window.name for window in windows] == ["2024-01-01", "2024-01-02", "2024-01-03"]
    for day, window in enumerate(windows):
        batches = window.evaluation(Ranks(32, 0, 1)).batches()
        prices = [value for batch in batches for value in batch.dense_features[: batch.num_rows, 0].tolist()]
        assert prices == [i for i, hour in enumerate(hours) if hour // 24 == day]
    with pytest.raises(
        ValueError, match=r"the column of times must have a name that no prepared column has: got 'price'"
    ):
        prepare("log", keep_time="price", output="other")
    with pytest.raises(
        ValueError, match=r"--keep_time must go with table, and with labelled files only: got table and"
    ):
        prepare("log", keep_time="at", output="other", unlabelled=(str(tmp_path / "log"),))
