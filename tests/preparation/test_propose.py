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

from dlrm_torchrec.preparation.prepare import Source, prepare
from dlrm_torchrec.preparation.proposals.roles import Proposal
from dlrm_torchrec.preparation.propose import propose
from dlrm_torchrec.preparation.readers.columns import Columns
from dlrm_torchrec.preparation.readers.tables import Form, head, table_reader
from dlrm_torchrec.preparation.splits import Whole
from dlrm_torchrec.schema import DatasetSpec, DenseFeature, SparseFeature

ROWS = 4000


def values(seed: int = 0) -> dict[str, list[Any]]:
    """Columns of every sort, as Python values; None is missing."""
    random = np.random.default_rng(seed)
    code, size = random.integers(0, 90, ROWS), random.pareto(1.2, ROWS)
    effect = random.permutation(np.linspace(-2, 2, 90))[code] + np.log1p(size)
    return {
        "clicked": ["yes" if value else "no" for value in random.random(ROWS) < 1 / (1 + np.exp(1 - effect))],
        "price": [None if value < 0.1 else round(float(value), 6) for value in random.random(ROWS)],
        "income": [int(value) for value in size * 100],
        "column14": [int(value) * 37 % 1001 + 20000 for value in code],
        "city": [None if value == 0 else f"c{value}" for value in random.integers(0, 20, ROWS)],
        "shop_id": [int(value) for value in random.integers(0, 500, ROWS)],
        "device": [int(value) for value in random.integers(0, 4, ROWS)],
        "tags": [[f"t{tag}" for tag in random.integers(0, 9, random.integers(0, 4))] for _ in range(ROWS)],
        "session": [f"s{number:08x}" for number in random.permutation(10**6)[:ROWS]],
        "seen": [int(second) for second in 1_700_000_000 + np.sort(random.integers(0, 10**6, ROWS))],
        "row": list(range(5, 5 + ROWS)),
        "version": ["v1"] * ROWS,
    }


def vocab(name: str, **more: Any) -> SparseFeature:
    return SparseFeature(name=name, rows=0, encoding="vocab", **more)


def number(name: str, **more: Any) -> DenseFeature:
    return DenseFeature(name=name, standardise=True, default=None, **more)


EXPECTED: dict[str, list[DenseFeature | SparseFeature]] = {
    "price": [
        number("price"),
        DenseFeature(name="price_missing", column="price", part="missing"),
        SparseFeature(name="price_bucket", column="price", rows=17, encoding="bucket"),
    ],
    "income": [
        number("income", log1p=True),
        SparseFeature(name="income_bucket", column="income", rows=17, encoding="bucket"),
    ],
    "column14": [vocab("column14")],
    "city": [vocab("city")],
    "shop_id": [vocab("shop_id")],
    "device": [vocab("device")],
    "tags": [vocab("tags", multi_hot=True)],
    "session": [],
    "seen": [
        number("seen_days", column="seen", part="days"),
        vocab("seen_hour", column="seen", part="hour"),
        vocab("seen_weekday", column="seen", part="weekday"),
    ],
    "row": [],
    "version": [],
}


def write(path: Path, columns: dict[str, list[Any]], separator: str = ",") -> str:
    """The columns as a file of the path's kind."""
    if path.suffix == ".parquet":
        pq.write_table(pa.table(columns), path)
        return str(path)
    rows = zip(*columns.values(), strict=True)
    cells = [
        ["" if cell is None else "|".join(cell) if isinstance(cell, list) else str(cell) for cell in row]
        for row in rows
    ]
    text = "\n".join([separator.join(columns), *(separator.join(row) for row in cells)]) + "\n"
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return str(path)


def features(proposal: Proposal) -> list[Any]:
    """Its features without raw columns that are their own names."""
    found: list[Any] = [*proposal.dense, *proposal.sparse]
    return [type(f)(**{**vars(f), "column": "" if f.column == f.name else f.column}) for f in found]


def arrays(columns: dict[str, Any]) -> dict[str, Any]:
    return {name: pa.array(each) for name, each in columns.items()}


def by_column(columns: dict[str, Any], **options: Any) -> dict[str, Proposal]:
    return {proposal.column: proposal for proposal in propose("log", arrays(columns), **options)[1]}


@pytest.mark.parametrize("name", ["log.csv", "log.csv.gz", "log.parquet"])
def test_every_column_becomes_what_it_is_and_can_be_prepared(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, values())
    spec, found, _ = propose("log", head(path, Form(), ROWS))
    assert (spec.label, spec.positive_label) == ("clicked", "yes")
    assert {proposal.column: features(proposal) for proposal in found[1:]} == EXPECTED
    assert DatasetSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec

    reader = table_reader(path, Columns(spec=spec), Form())
    manifest = prepare(spec, [Source(path=path, reader=reader, assignment=Whole("train"))], str(tmp_path / "prepared"))
    assert manifest.splits["train"].rows == ROWS
    assert manifest.report["rows_quarantined"] == 0
    rows = {feature.name: feature.rows for feature in manifest.spec.sparse}
    assert (rows["city"], rows["shop_id"], rows["device"], rows["tags"]) == (
        21,
        len(set(values()["shop_id"])) + 2,
        6,
        11,
    )
    assert (rows["column14"], rows["seen_hour"], rows["seen_weekday"]) == (92, 26, 9)
    dense = pq.read_table(tmp_path / "prepared" / manifest.splits["train"].files[0].path)
    income = np.log1p(np.array(values()["income"], float))
    np.testing.assert_allclose(dense["income"], (income - income.mean()) / income.std(), rtol=1e-5, atol=1e-6)
    prices = np.array([np.nan if each is None else each for each in values()["price"]])
    scaled = np.nan_to_num((prices - np.nanmean(prices)) / np.nanstd(prices))
    np.testing.assert_allclose(dense["price"], scaled, rtol=1e-5, atol=1e-6)
    assert dense["price_missing"].to_pylist() == np.isnan(prices).tolist()
    buckets = np.bincount(dense["price_bucket"].to_numpy())
    assert buckets[0] == np.isnan(prices).sum()
    assert np.ptp(buckets[1:]) <= 0.1 * buckets[1]  # equally many rows each


def test_a_line_says_what_a_column_becomes_and_why_and_what_would_change_it() -> None:
    lines = {name: proposal.line for name, proposal in by_column(values()).items()}
    assert lines["clicked"].startswith("left out: label: 'yes' means 1, by its word; 4")
    assert lines["row"] == "left out: it numbers the rows; --numbers row keeps it"
    assert lines["session"] == "left out: every row has another value; --codes session keeps it"
    assert lines["version"] == "left out: it has one value only"
    assert lines["city"].startswith("category: 19 distinct values in 4,000 rows, 5.")
    assert lines["shop_id"].startswith(
        "category: whole numbers with the name of a code; 500 distinct in 4,000 rows; --num"
    )
    assert lines["column14"].startswith("category: its order tells little of the label, by its values ")
    assert lines["column14"].endswith("--numbers column14 makes it a quantity")
    assert lines["income"].startswith("log(1 + x), standardised, 16 buckets: numbers from 0 to ")
    assert lines["seen"].startswith("days, standardised, hour, weekday: times from 2023-11-14T22:1")


def test_a_person_has_the_last_word() -> None:
    roles: Any = {"income": "code", "column14": "number", "city": "out", "seen": "number", "row": "number"}
    found = by_column(values(), roles=roles)
    assert [feature.name for feature in features(found["income"])] == ["income"]
    assert isinstance(features(found["column14"])[0], DenseFeature)
    assert features(found["city"]) == []
    assert features(found["seen"])[0] == number("seen")
    assert features(found["row"])[0] == number("row")
    with pytest.raises(ValueError, match=r"columns that you name must be among .*: got 'nothing'; correct it"):
        by_column(values(), roles={"nothing": "code"})
    with pytest.raises(ValueError, match="column 'session' must hold numbers to be one: got others"):
        by_column(values(), roles={"session": "number"})


def test_what_tells_the_label_alone_is_left_out() -> None:
    columns = values()
    clicked = [value == "yes" for value in columns["clicked"]]
    columns["clicked_at"] = [1_700_000_000 + i if value else None for i, value in enumerate(clicked)]
    columns["state"] = ["done" if value else "open" for value in clicked]
    columns["money"] = [i % 7 + 0.5 if value else 0.0 for i, value in enumerate(clicked)]
    found = by_column(columns)
    for name in ("clicked_at", "state", "money"):
        why = "only positive rows have a value" if name == "clicked_at" else "alone it tells the label (AUC 1.0000)"
        assert why in found[name].line
        assert not features(found[name])


def test_a_weekday_is_told_only_if_the_times_have_each_though_the_latest_are_held_out() -> None:
    seen = 1_700_000_000 + np.sort(np.random.default_rng(3).integers(0, 7 * 86_400, ROWS))
    short = by_column({**values(), "seen": seen.tolist()})["seen"]
    assert [feature.name for feature in features(short)] == ["seen_days", "seen_hour"]
    later = by_column({**values(), "seen": [*seen[:-1].tolist(), int(seen[0]) + 9 * 86_400]})["seen"]
    assert [feature.name for feature in features(later)] == ["seen_days", "seen_hour", "seen_weekday"]


def test_a_few_texts_among_numbers_are_told() -> None:
    columns = values()
    columns["money"] = [f"{i % 701 / 7:.2f}" if i % 97 else "12.50 EUR" for i in range(ROWS)]
    found = by_column(columns)["money"]
    assert found.reason.endswith(
        ", numbers but for 42 like '12.50 EUR': to have a quantity, repair them, or add them to 'missing' of the spec "
        "and make the column dense there"
    )
    columns["money"] = [each if i % 5 else f"c{i % 701}" for i, each in enumerate(columns["money"])]
    assert "numbers but for" not in by_column(columns)["money"].reason


@pytest.mark.parametrize("kind", ["text", "number", "time"])
def test_what_only_positive_rows_have_is_left_out_though_some_of_them_lack_it(kind: str) -> None:
    columns = values()
    of_kind: dict[str, Any] = {
        "text": [f"order {i % 500}" for i in range(ROWS)],
        "number": [i % 97 + 0.5 for i in range(ROWS)],
        "time": list(range(1_700_000_000, 1_700_000_000 + ROWS)),
    }
    columns["paid_by"] = [
        of_kind[kind][i] if value == "yes" and i % 3 else None for i, value in enumerate(columns["clicked"])
    ]
    paid = sum(each is not None for each in columns["paid_by"])
    assert by_column(columns)["paid_by"].line == (
        f"left out: only positive rows have a value, {paid:,} of them, so it is probably known only after the label; "
        "--codes, --numbers or --times paid_by keeps it"
    )
    columns["paid_by"][columns["clicked"].index("no")] = of_kind[kind][1]
    assert features(by_column(columns)["paid_by"])


def test_ids_that_never_repeat_are_left_out_whatever_their_type_and_name() -> None:
    random = np.random.default_rng(1)
    tokens, large = [random.bytes(16).hex() for _ in range(ROWS)], random.integers(2**60, 2**62, ROWS)
    found = by_column({**values(), "session_id": tokens, "request": large.tolist()})
    assert found["session_id"].line == "left out: every row has another value; --codes session_id keeps it"
    assert found["request"].line == "left out: an id that never repeats; --codes request keeps it"


def test_whole_numbers_are_codes_by_their_names_or_their_size() -> None:
    random = np.random.default_rng(2)
    columns: dict[str, Any] = {
        name: random.integers(0, 300, ROWS).tolist()
        for name in ("maxBid", "device_count", "user_age", "user", "userId", "item_2", "zipCode")
    }
    columns["hash_of"] = random.choice(random.integers(2**63, 2**64 - 1, 300, dtype=np.uint64), ROWS)
    columns["drawn"] = random.choice(random.integers(2**60, 2**62, 300), ROWS)
    columns["mass"] = random.choice(np.floor(random.random(300) * 1e20), ROWS)  # floats
    found = by_column({"clicked": random.integers(0, 2, ROWS).tolist(), **columns})
    codes = {name for name in columns if features(found[name]) == [vocab(name)]}
    assert codes == {"user", "userId", "item_2", "zipCode", "hash_of", "drawn"}
    assert found["drawn"].reason.startswith("whole numbers too large for a quantity; 300 distinct")


def test_names_that_columns_have_already_are_not_taken_twice() -> None:
    columns = {"click": [0, 1] * 50, "x": [i * 0.37 % 11 for i in range(100)], "x_bucket": ["a", "b", "b", "a"] * 25}
    names = [feature.name for proposal in by_column(columns).values() for feature in features(proposal)]
    assert names == ["x", "x_bucket_", "x_bucket"]


def test_missing_markers_and_marks_of_numbers_are_recognised_and_said() -> None:
    base = {"label": ["0", "1", "1", "0", "1"] * 20, "c": ["a", "b", "b", "a"] * 25}
    spec, _, notes = propose("log", arrays({**base, "x": [" 1,5", "2.000,25", "NA", "7"] * 25}))
    assert (spec.decimal, spec.thousands) == (",", ".")
    assert [feature.name for feature in spec.dense] == ["x", "x_missing"]
    assert notes[0].startswith("numbers have ',' before the fraction and '.' between thousands: x are")
    assert "'NA' means a missing value: x; change 'missing' of the spec if it does not" in notes
    spec, _, notes = propose("log", arrays({**base, "x": ["1.5", "?", "3", "4.25"] * 25}))
    assert "?" in spec.missing
    assert notes == ["'?' means a missing value: it stands among the numbers of x"]
    spec, _, notes = propose("log", arrays({**base, "x": ["1.5", "n/a", "3", "None"] * 25}))
    assert [feature.name for feature in spec.dense] == ["x", "x_missing"]
    assert {"n/a", "None"} < {*spec.missing}
    spec, *_ = propose("log", arrays({**base, "x": ["$1,234.50", "$7", "-$3", "$0.5"] * 25}))
    assert (spec.thousands, [feature.name for feature in spec.dense]) == (",", ["x"])
    spec, *_ = propose("log", arrays({**base, "x": ["1.5", "word", "3", "4.25"] * 25}))
    assert [feature.name for feature in spec.sparse] == ["c", "x"]


def test_many_ids_are_hashed_into_twice_as_many_rows() -> None:
    ids = np.random.default_rng(0).permutation(150_000)
    columns = {"label": [0, 1] * 75_000, "user": [f"u{i}" for i in [*ids[:-1], ids[0]]]}
    found = by_column(columns)["user"]
    assert features(found) == [SparseFeature(name="user", rows=1 << 19, encoding="hash")]
    assert found.change == "--managed user gives each value that training meets a row of its own"
    managed = by_column(columns, roles={"user": "managed"})["user"]
    assert features(managed) == [SparseFeature(name="user", rows=1 << 18, encoding="managed")]
    assert managed.line.startswith("category, 262,144 rows for the values that training meets: 149,999 distinct values")
    numbers = {"label": [0, 1] * 75_000, "user_id": [*ids[:-1], ids[0]], "seen": [[i, i + 1] for i in ids]}
    roles: dict[str, Any] = {"user_id": "managed", "seen": "managed"}
    assert [[each.encoding for each in features(by_column(numbers, roles=roles)[name])] for name in roles] == [
        ["managed"],
        ["managed"],
    ]
    assert by_column(numbers)["user_id"].change.endswith(
        "a quantity; --managed user_id gives each value that training meets a row of its own"
    )


@pytest.mark.parametrize(
    ("label", "positive"),
    [
        ([0, 1, 0], None),
        ([0.0, 1.0, 0.0], None),
        ([1.0, 2.0, 1.0], "2"),
        ([-1.0, 1.0, -1.0], "1"),
        ([False, True, False], None),
        (["0", "1", "0"], None),
        (["False", "True", "False"], None),
        (["no click", "click", "click"], "click"),
        ([" - 50000.", " 50000+.", " - 50000."], "50000+."),
    ],
)
def test_labels(label: list[Any], positive: str | None) -> None:
    columns = arrays({"target": label, "x": [1.5, 2.5, 7.0], "c": ["a", "b", "a"]})
    spec, *_ = propose("log", columns, label="target")
    assert spec.positive_label == positive
    assert propose("log", columns, positive="x")[0].positive_label == "x"


def test_a_label_of_many_numbers_is_regression() -> None:
    columns = arrays({"rating": [1, 2.5, 5, 4] * 9, "user_id": [1, 2, 3] * 12})
    spec, found, _ = propose("log", columns, label="rating")
    assert (spec.target, spec.positive_label) == ("number", None)
    assert "regression" in found[0].reason


def test_every_type_of_arrow_has_a_role_or_a_reason() -> None:
    pairs = [{"a": 1}, {"a": 2}] * 50
    columns = {
        "y": pa.array([0, 1, 1, 0, 1] * 20),
        "word": pa.array(["a", "b", "a", None] * 25).dictionary_encode(),
        "view": pa.array(["a", "b"] * 50, pa.string_view()),
        "flag": pa.array([True, False, False, None] * 25),
        "half": pa.array([i % 41 + 0.5 for i in range(100)], pa.float16()),
        "money": pa.array([i % 47 for i in range(100)], pa.decimal128(9, 2)),
        "fixed": pa.array([[i % 3, i % 5] for i in range(100)], pa.list_(pa.int32(), 2)),
        "large": pa.array([[i % 3] for i in range(100)], pa.large_list(pa.int64())),
        "when": pa.array(range(0, 10_000_000, 100_000), pa.timestamp("s")),
        "day": pa.array(range(100), pa.date32()),
        "nothing": pa.nulls(100),
        "pair": pa.array(pairs),
        "map": pa.array([[("a", 1)]] * 100, pa.map_(pa.string(), pa.int32())),
        "nested": pa.array([[[1]], [[2]]] * 50),
    }
    _, found, _ = propose("log", columns, label="y")
    kinds = {proposal.column: [feature.name for feature in features(proposal)] for proposal in found[1:]}
    assert {name for name, kind in kinds.items() if not kind} == {"nothing", "pair", "map", "nested"}
    assert kinds["when"] == ["when_days", "when_hour", "when_weekday"]
    reasons = {proposal.column: proposal.reason for proposal in found}
    assert reasons["pair"] == "a column of type struct<a: int64> is no feature"
    assert "map" in reasons["map"]


@pytest.mark.parametrize(
    ("columns", "label", "message"),
    [
        ({"a": [1, 2, 3]}, "", r"label must be told by its name: got no column of two values among \['a'\]; name it"),
        (
            {"isweekend": [1, 2, 1], "b": ["x", "y", "x"]},
            "",
            r"label must be told by its name: got \['isweekend', 'b'\] of two values among .*; name it with --label",
        ),
        ({"click": [1, 0, 1], "bought": [1, 0, 0]}, "", r"got \['click', 'bought'\] of two values"),
        ({"a": [1, 2, 1]}, "z", r"label must be one of the columns \['a'\]: got 'z'; name it with --label"),
        ({"a": ["x", "y", "z"]}, "a", r"label 'a' must have two values, or hold numbers: got 3 texts"),
        ({"a": [1, 1]}, "a", r"label 'a' must have two values: got \['1'\]; name another with --label"),
    ],
)
def test_labels_that_are_refused(columns: dict[str, list[Any]], label: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        propose("log", arrays(columns), label=label)


def test_columns_in_the_names_of_folders_are_told(tmp_path: Path) -> None:
    for day in ("2026-11-01", "2026-11-02"):
        (tmp_path / "log" / f"day={day}" / "city=7").mkdir(parents=True)
        write(tmp_path / "log" / f"day={day}" / "city=7" / "part-0.parquet", values())
    command = [sys.executable, "-m", "dlrm_torchrec.preparation.propose", str(tmp_path / "log")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.endswith(
        "'day' stands in the names of folders alone, which are not read; write it into the files to have it\n"
    )
    assert "'city' stands" not in done.stdout  # the files have it, too


def test_as_a_command(tmp_path: Path) -> None:
    path, spec = write(tmp_path / "clicks.csv", values()), tmp_path / "spec.json"
    command = [sys.executable, "-X", "importtime", "-m", "dlrm_torchrec.preparation.propose", path, f"--output={spec}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "clicked   label: 'yes' means 1" in done.stdout
    assert "spec.json: 4 dense and 9 sparse features; prepare with --spec" in done.stdout
    assert DatasetSpec.read(spec.read_bytes()).name == "clicks"
    assert " torch\n" not in done.stderr  # which would take seconds
    failed = subprocess.run([*command, "--label=nothing"], capture_output=True, text=True)
    assert failed.returncode == 1
    assert "error: label must be one of the columns" in failed.stderr
