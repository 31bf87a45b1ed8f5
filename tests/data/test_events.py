"""data/events/prepare.py on logs of text and Parquet, with bad rows, and on a folder in the format of MovieLens."""

from __future__ import annotations

import json
import re
import shlex
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dlrm_torchrec.datasets.prepared.manifest import Manifest
from dlrm_torchrec.datasets.sequences.config import SamplesConfig
from dlrm_torchrec.datasets.sequences.open import open_sequences
from dlrm_torchrec.datasets.sequences.stored import read_log
from dlrm_torchrec.datasets.sequences.yambda import yambda_spec
from dlrm_torchrec.datasets.stream import Ranks
from dlrm_torchrec.preparation.crosses import SizedCross
from dlrm_torchrec.preparation.histories import LogColumns, prepare_histories
from dlrm_torchrec.preparation.readers.tables import Form
from dlrm_torchrec.preparation.time_windows import Shares
from dlrm_torchrec.sequence_schema import ACTION, TIME, Cross
from tests.recipe import ROOT
from tests.scripts import run_python

COLUMNS = LogColumns(user="user", item="item", action="action", time="time", events=("artist",), users=("country",))
SCRIPT = str(ROOT / "data/events/prepare.py")
SHARES = Shares(val=0.2, test=0.1, gap_s=50)


def random_rows(seed: int, count: int = 3_000) -> list[dict[str, Any]]:
    """Events in any order; many have equal times."""
    random = np.random.default_rng(seed)
    return [
        {
            "user": f"u{user}",
            "item": f"song {item}",
            "artist": f"a{item % 7}",
            "country": "DE" if user % 2 else "FR",
            "action": ("skip", "listen", "like")[action],
            "time": 1_700_000_000 + second,
        }
        for user, item, action, second in zip(
            random.integers(0, 50, count),
            random.zipf(1.5, count) % 40,
            random.integers(0, 3, count),
            random.integers(0, 800, count).tolist(),
            strict=True,
        )
    ]


def naive_histories(rows: list[dict[str, Any]]) -> dict[str, list[tuple[int, str, str, str]]]:
    """Time, item, artist and action of the events of each user, sorted by time, equal times as they come."""
    found = defaultdict(list)
    for row in rows:
        found[row["user"]].append((row["time"], row["item"], row["artist"], row["action"]))
    return {user: sorted(events, key=lambda event: event[0]) for user, events in found.items()}


def rows_back(folder: Path) -> list[tuple[str | None, list[tuple[int, str | None, str | None, str]]]]:
    """User and history of each row in a prepared folder, as the raw values of the log; None is unknown."""
    manifest = Manifest.load(str(folder))
    history = manifest.spec.history
    assert history is not None
    words: dict[str, list[str | None]] = {
        name: [None, None, *map(str, pq.read_table(folder / f"vocab/{name}.parquet")["value"].to_pylist())]
        for name in ("user", "item", "artist")
    }
    return [
        (
            words["user"][row["user"]],
            [
                (time, words["item"][item], words["artist"][artist], history.actions[action - 1])
                for time, item, artist, action in zip(row[TIME], row["item"], row["artist"], row[ACTION], strict=True)
            ],
        )
        for file in manifest.splits["users"].files
        for row in pq.read_table(folder / file.path).to_pylist()
    ]


def read_back(folder: Path) -> tuple[dict[str, list[tuple[int, str, str, str]]], dict[str, str]]:
    """The histories in a prepared folder as the raw values of the log, and the country of each user."""
    manifest = Manifest.load(str(folder))
    history = manifest.spec.history
    assert history is not None
    words = {
        feature.name: [None, None, *pq.read_table(folder / f"vocab/{feature.name}.parquet")["value"].to_pylist()]
        for feature in manifest.spec.sparse
    }
    found, countries = {}, {}
    for file in manifest.splits["users"].files:
        for row in pq.read_table(folder / file.path).to_pylist():
            user = words["user"][row["user"]]
            countries[user] = words["country"][row["country"]]
            found[user] = [
                (time, words["item"][item], words["artist"][artist], history.actions[action - 1])
                for time, item, artist, action in zip(row[TIME], row["item"], row["artist"], row[ACTION], strict=True)
            ]
    return found, countries


def write_csv(path: Path, rows: list[dict[str, Any]], bad: dict[int, str] | None = None) -> Path:
    """A log with lines ``bad`` before the rows of these numbers."""
    lines = [",".join(rows[0])]
    for number, row in enumerate(rows):
        if bad and number in bad:
            lines.append(bad[number])
        lines.append(",".join(map(str, row.values())))
    path.write_text("\n".join(lines) + "\n")
    return path


def prepare(paths: list[Path], output: Path, **options: Any) -> Manifest:
    return prepare_histories(
        [str(path) for path in paths],
        options.pop("columns", COLUMNS),
        str(output),
        **{"form": Form(), "name": "songs", "positive": ("listen", "like"), "shares": SHARES, **options},
    )


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize("memory_bytes", [2 << 30, 400_000])
def test_histories_are_those_of_a_plain_loop(tmp_path: Path, kind: str, memory_bytes: int) -> None:
    rows = random_rows(1)
    path = tmp_path / f"log.{kind}"
    if kind == "csv":
        write_csv(path, rows)
    else:
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=500)
    manifest = prepare([path], tmp_path / "data", memory_bytes=memory_bytes)
    found, countries = read_back(tmp_path / "data")
    assert found == naive_histories(rows)
    assert countries == {user: "DE" if int(user[1:]) % 2 else "FR" for user in found}
    assert len(manifest.splits["users"].files) == (1 if memory_bytes > 1 << 30 else 3)
    assert manifest.spec.label == "positive"
    earlier = [place for events in found.values() for place in range(len(events))]
    factors = {feature.pooling_factor for feature in manifest.spec.sparse if feature.multi_hot}
    assert [*factors] == pytest.approx([1 + np.mean(earlier)])
    assert manifest.report["simultaneous"] == len(rows) - len({(row["user"], row["time"]) for row in rows}) > 0
    read_log(manifest, str(tmp_path / "data"))
    assert not (tmp_path / "data.events").exists()


def test_windows_have_the_shares_that_are_asked_for(tmp_path: Path) -> None:
    rows = random_rows(2)
    manifest = prepare([write_csv(tmp_path / "log.csv", rows)], tmp_path / "data")
    times = np.array([row["time"] for row in rows])
    windows = {name: (times >= first) & (times < end) for name, (first, end) in manifest.windows.items()}
    assert [*windows] == ["train", "val", "test"]
    assert windows["test"].mean() == pytest.approx(0.1, abs=0.01)
    assert manifest.windows["val"][1] == manifest.windows["test"][0] - 50
    assert manifest.windows["train"][1] == manifest.windows["val"][0] - 50
    assert windows["train"].mean() == pytest.approx(0.7 - 50 / 800, abs=0.02)


def test_the_smallest_window_has_the_latest_event(tmp_path: Path) -> None:
    rows = random_rows(4, 90)
    manifest = prepare([write_csv(tmp_path / "log.csv", rows)], tmp_path / "data", shares=Shares(val=0.001))
    assert manifest.windows["val"][0] == manifest.windows["train"][1] == max(row["time"] for row in rows)


@pytest.mark.parametrize("min_count", [1, 6])
def test_evaluation_meets_what_training_has_not_seen_as_unknown(tmp_path: Path, min_count: int) -> None:
    """A later event has values that the vocabularies, those of the training events alone, do not have."""
    rows, late = random_rows(11), 1_700_000_000 + 700
    for number, row in enumerate(rows):
        row["item"] = ("song " if number % 3 else "") + str(number % 60)  # texts and whole numbers
        if row["time"] >= late and number % 4 == 0:
            row |= {"item": f"new {number % 5}", "artist": "new", "action": "share"}
        if row["time"] >= late and number % 6 == 0:
            row["user"] = f"newcomer {number % 9}"
    path = write_csv(tmp_path / "log.csv", rows)
    manifest = prepare([path], tmp_path / "data", shares=Shares(val=0.2, gap_s=20), min_count=min_count)
    end = manifest.windows["train"][1]
    assert manifest.windows["val"][0] - 20 == end < late
    early = write_csv(tmp_path / "early.csv", [row for row in rows if row["time"] < end])
    alone = prepare([early], tmp_path / "alone", shares=Shares(val=0.0), min_count=min_count)
    assert alone.windows == {}
    for found, expected in zip(manifest.spec.sparse, alone.spec.sparse, strict=True):
        vocabularies = [pq.read_table(tmp_path / f"{name}/vocab/{found.name}.parquet") for name in ("data", "alone")]
        assert vocabularies[0].equals(vocabularies[1])
        assert (found.rows, found.vocabulary) == (expected.rows, expected.vocabulary)

    seen = {row["user"] for row in rows if row["time"] < end}
    items = {*map(str, pq.read_table(tmp_path / "alone/vocab/item.parquet")["value"].to_pylist())}
    wanted = [
        (user if user in seen else None, [
            (time, item if item in items else None, None if artist == "new" else artist, action)
            for time, item, artist, action in events
        ])
        for user, events in naive_histories(rows).items()
    ]  # fmt: skip
    assert sum(user is None for user, _ in wanted) > 1
    assert sum(item is None for _, events in wanted for _, item, _, _ in events) > 20
    assert sorted(map(repr, rows_back(tmp_path / "data"))) == sorted(map(repr, wanted))
    read_log(manifest, str(tmp_path / "data"))


def test_malformed_rows_go_to_quarantine(tmp_path: Path) -> None:
    rows, bad = random_rows(3, 900), {}
    bad[5] = "u1,,a1,DE,like,1700000001"
    bad[17] = "u1,song 1,a1,DE,like,yesterday"
    bad[90] = "u1,song 1,a1,DE,like"
    bad[400] = ",song 1,a1,DE,like,1700000001"
    bad[401] = "Zoë\\,song 1,a1,DE,NA,1700000001"
    bad[700] = "u1,song 1,a1,DE,like,-1700000001"
    path = write_csv(tmp_path / "log.csv", rows, bad)
    manifest = prepare([path], tmp_path / "data")
    assert read_back(tmp_path / "data")[0] == naive_histories(rows)
    lines = [line.split("\t") for line in (tmp_path / "data/quarantine.tsv").read_text().splitlines()[1:]]
    text = path.read_text().splitlines()
    assert [line[3].replace(r"\\", "\\") for line in lines] == list(bad.values())
    assert [text[int(line[1]) - 1] for line in lines] == list(bad.values())
    reasons = [line[2] for line in lines]
    assert reasons[0] == "item is missing"
    assert reasons[1] == reasons[5] == "time is not a time from 1970 on"
    assert reasons[3:5] == ["user is missing", "action is missing"]
    assert (
        manifest.report["rows_quarantined"]
        == json.loads((tmp_path / "data/report.json").read_text())["rows_quarantined"]
    )
    with pytest.raises(ValueError, match=r"malformed rows must be at most 0.10% of all: got 6 of 906"):
        prepare([path], tmp_path / "strict", max_bad_share=0.001)
    kept = tmp_path / "strict.events"  # the rows that the error speaks of
    assert sorted(each.name for each in kept.iterdir()) == ["quarantine.tsv", "report.json"]
    assert (kept / "quarantine.tsv").read_bytes() == (tmp_path / "data/quarantine.tsv").read_bytes()
    assert prepare([path], tmp_path / "strict") == manifest
    assert not kept.exists()


def test_times_may_be_dates_parts_of_seconds_or_any_numbers(tmp_path: Path) -> None:
    rows = random_rows(4, 400)
    dated = [{**row, "time": f"{np.datetime64(row['time'], 's')}Z"} for row in rows]
    counted = [{**row, "time": row["time"] - 1_700_000_000} for row in rows]
    fine = [{**row, "time": f"{row['time']}.{999 - i:03}"} for i, row in enumerate(rows)]
    whole = Shares(val=0.0)
    for name, each, expected in (
        ("dated", dated, naive_histories(rows)),
        ("counted", counted, naive_histories(counted)),
    ):
        prepare([write_csv(tmp_path / f"{name}.csv", each)], tmp_path / name, shares=whole)
        assert read_back(tmp_path / name)[0] == expected
    prepare([write_csv(tmp_path / "fine.csv", fine)], tmp_path / "fine", shares=whole)
    backwards = naive_histories(rows[::-1])  # later rows are earlier within their second
    assert read_back(tmp_path / "fine")[0] == backwards


@pytest.mark.parametrize("kind", [pa.timestamp("ms", "Europe/Berlin"), pa.timestamp("ns"), pa.date32()])
def test_times_of_parquet_may_be_typed(tmp_path: Path, kind: pa.DataType) -> None:
    unit_s = 86_400 if kind == pa.date32() else 1
    rows = [{**row, "time": row["time"] % 800 * 86_400} for row in random_rows(8, 400)]
    times = pa.array([row["time"] // unit_s for row in rows])
    typed = times.cast(pa.int32()).cast(kind) if unit_s > 1 else times.cast(pa.timestamp("s")).cast(kind)
    table = pa.Table.from_pylist(rows).drop_columns("time").append_column("event_time", typed)
    pq.write_table(table, tmp_path / "log.parquet")
    prepare(
        [tmp_path / "log.parquet"],
        tmp_path / "data",
        shares=Shares(val=0.0),
        columns=replace(COLUMNS, time="event_time"),
    )
    assert read_back(tmp_path / "data")[0] == naive_histories(rows)
    found = run_python([SCRIPT, "--input", "log.parquet", "--positive", "like", "--output", "found"], tmp_path)
    assert found.returncode == 0, found.stderr


def test_ratings_in_halves_are_the_same_in_every_form(tmp_path: Path) -> None:
    rows = [{**row, "action": (1 + number % 9) / 2} for number, row in enumerate(random_rows(9, 400))]
    options: dict[str, Any] = {"positive": ("4", "4.5"), "shares": Shares(val=0.0)}
    written = [{**row, "action": f"{row['action']:g}"} for row in rows]
    expected = prepare([write_csv(tmp_path / "log.csv", written)], tmp_path / "text", **options)
    assert read_back(tmp_path / "text")[0] == naive_histories(written)
    kinds = [pa.float32(), pa.float64(), pa.decimal128(3, 1)]
    for kind in kinds:
        ratings = pa.array([*(row["action"] for row in rows), None]).cast(kind)
        table = pa.Table.from_pylist([*rows, rows[0]]).drop_columns("action").append_column("action", ratings)
        path, output = tmp_path / f"{kind}.parquet", tmp_path / str(kind)
        pq.write_table(table, path)
        manifest = prepare([path], output, **options)
        assert manifest.spec == expected.spec
        assert manifest.report["rows_quarantined"] == 1
        assert read_back(output) == read_back(tmp_path / "text")


def test_files_without_rows_are_passed_over(tmp_path: Path) -> None:
    rows = random_rows(10, 300)
    log = tmp_path / "log"
    log.mkdir()
    for name, text in (("1.csv", ""), ("2.csv", ",".join(rows[0])), ("4.csv", "\n\n")):
        (log / name).write_text(text)
    empty = [log / "1.csv", log / "2.csv"]
    message = r"one of the files must have rows: got none in .*2.csv; name others"
    with pytest.raises(ValueError, match=message):
        prepare(empty, tmp_path / "data")
    command = [SCRIPT, "--positive", "like", "--events", "artist", "--users", "country", "--val_share", "0"]
    done = run_python([*command, "--input", *map(str, empty), "--output", "data"], tmp_path)
    assert done.returncode == 1
    assert re.search(message, done.stderr)
    write_csv(log / "3.csv", rows)
    for number, paths in enumerate(([log], [*empty, log / "3.csv"])):
        done = run_python([*command, "--input", *map(str, paths), "--output", f"data{number}"], tmp_path)
        assert done.returncode == 0, done.stderr
        assert read_back(tmp_path / f"data{number}")[0] == naive_histories(rows)


def test_json_lines_are_refused_with_what_to_do(tmp_path: Path) -> None:
    lines = [json.dumps(row) for row in random_rows(12, 9)]
    (tmp_path / "log.jsonl").write_text("\n".join(lines))
    done = run_python([SCRIPT, "--input", "log.jsonl", "--output", "data"], tmp_path)
    assert done.returncode == 1
    assert "must be Parquet, or text with separators: got JSON, '{" in done.stderr
    assert "; convert rows to Parquet with pyarrow.json.read_json" in done.stderr


def test_other_folders_and_actions_are_refused(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "log.csv", random_rows(5, 300))
    with pytest.raises(ValueError, match="positive actions must occur in the log: got 'buy'; name some of"):
        prepare([path], tmp_path / "data", positive=("buy",))
    with pytest.raises(
        ValueError, match=r"positive actions must stand in a column of the .*got \['like'\] and no such"
    ):
        prepare([path], tmp_path / "data", positive=("like",), columns=replace(COLUMNS, action=""))
    assert [each.name for each in tmp_path.iterdir()] == ["log.csv"]
    prepare([path], tmp_path / "data")
    with pytest.raises(ValueError, match="must not be prepared already"):
        prepare([path], tmp_path / "data")
    prepare([path], tmp_path / "data", overwrite=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/only_copy.parquet").write_bytes(b"precious")
    with pytest.raises(ValueError, match="must be empty or made by a preparation"):
        prepare([path], tmp_path / "mine", overwrite=True)
    with pytest.raises(ValueError, match=r"columns of a log must be distinct.*got \['item'\]"):
        prepare([path], tmp_path / "twice", columns=LogColumns(user="user", item="item", time="time", users=("item",)))
    for name in ("hour", "time", "label"):
        named = LogColumns(user="user", item="item", time="time", events=(name,))
        with pytest.raises(ValueError, match=rf"categories not have the names .*'hour'.*got \['{name}'\]; rename or"):
            prepare([path], tmp_path / "named", columns=named)
    for shares in ({"val": 0.0, "test": 0.1}, {"val": 0.0, "gap_s": 5}, {"val": -0.1}, {"val": 0.9, "test": 0.1}):
        with pytest.raises(ValueError, match=r"shares and the gap must be at least 0, sum below 1, and be 0 for test"):
            Shares(**shares)  # type: ignore[arg-type]  # one of them is an integer


def test_the_command_finds_usual_names_and_movielens(tmp_path: Path) -> None:
    rows = random_rows(6, 500)
    rows[9] |= {"user": rows[8]["user"], "time": rows[8]["time"]}
    log = write_csv(
        tmp_path / "log.csv", [{"user_id": r["user"], "itemId": r["item"], "timestamp": r["time"]} for r in rows]
    )
    done = run_python([SCRIPT, "--input", str(log), "--output", "plain"], tmp_path)
    assert done.returncode == 0, done.stderr
    windows = Manifest.load(str(tmp_path / "plain")).windows
    counts = [sum(first <= row["time"] < end for row in rows) for first, end in windows.values()]
    begin, middle = (np.datetime64(first, "s") for first, _ in windows.values())
    assert sum(counts) == 500
    together = 500 - len({(row["user"], row["time"]) for row in rows})
    assert done.stdout.splitlines() == [
        f"plain: 500 events of {len({r['user'] for r in rows})} users; 0 malformed rows in quarantine.tsv",
        f"{together} events ({together / 500:.1%}) have the time of the one before them, by the same user; such events "
        "keep the order of the log",
        f"train: {counts[0]} events from {begin} until {middle}",
        f"val: {counts[1]} events from {middle} on",
    ]
    history = Manifest.load(str(tmp_path / "plain")).spec.history
    assert history is not None
    assert (history.events, history.actions, history.positive) == (("itemId",), ("event",), ())

    (tmp_path / "ml-1m").mkdir()
    ratings = "".join(f"{r['user'][1:]}::{r['item'][5:]}::{i % 5 + 1}::{r['time']}\n" for i, r in enumerate(rows))
    (tmp_path / "ml-1m/ratings.dat").write_text(ratings)
    done = run_python([SCRIPT, "--input", "ml-1m", "--positive", "4", "5", "--output", "movies"], tmp_path)
    assert done.returncode == 0, done.stderr
    manifest = Manifest.load(str(tmp_path / "movies"))
    assert manifest.spec.history is not None
    assert sorted(manifest.spec.history.actions) == ["1", "2", "3", "4", "5"]
    assert read_log(manifest, str(tmp_path / "movies")).num_users == len({r["user"] for r in rows})
    done = run_python([SCRIPT, "--input", str(log), "--output", "x", "--user", "nobody"], tmp_path)
    assert done.returncode != 0
    assert "must have a column of the user: got ['user_id', 'itemId', 'timestamp']; name it with --user" in done.stderr


def naive_cross(ids: list[int], rows: int) -> int:
    """The id of a cross: the finaliser of SplitMix64 over its parts, one after the other, in [1, rows)."""
    key = 0
    for part in ids:
        key = (key + (part + 1) * 0x9E3779B97F4A7C15) % 2**64
        key = (key ^ key >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        key = (key ^ key >> 27) * 0x94D049BB133111EB % 2**64
        key ^= key >> 31
    return 1 + key % (rows - 1)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_crosses_read_marks_and_hours_of_candidates(tmp_path: Path, kind: str) -> None:
    rows = [{**row, "time": row["time"] * 40, "is_organic": row["time"] // 3 % 2} for row in random_rows(7, 1_500)]
    path = tmp_path / f"log.{kind}"
    if kind == "csv":
        write_csv(path, rows)
    else:
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=500)
    crosses = [
        "u x a=user,artist:5000",
        "u x o=user,is_organic:97",
        "i x h=item,hour:1000",
        "all=country,item,hour:2000",
    ]
    options = ["--positive", "like", "--events", "artist", "--users", "country", "--marks", "is_organic"]
    done = run_python(
        [SCRIPT, "--input", str(path), "--output", "data", *options, "--crosses", *crosses], tmp_path
    )  # fmt: skip
    assert done.returncode == 0, done.stderr

    folder = tmp_path / "data"
    manifest = Manifest.load(str(folder))
    spec = manifest.spec
    inside = [
        [row["action"] == "like" for row in rows if first <= row["time"] < end]
        for first, end in manifest.windows.values()
    ]
    counts = [{"events": len(liked), "positives": sum(liked)} for liked in inside]
    assert [*json.loads((folder / "report.json").read_text())["windows"].values()] == counts
    assert [line.rsplit(", ")[1] for line in done.stdout.splitlines() if " events from " in line] == [
        f"{np.mean(liked):.1%} positive" for liked in inside
    ]
    assert [(f.name, f.rows) for f in spec.sparse[-4:]] == [
        ("u x a", 5000),
        ("u x o", 97),
        ("i x h", 1000),
        ("all", 2000),
    ]
    names = ("user", "country", "item", "artist", "is_organic")
    ids = {
        name: {
            value: 2 + place
            for place, value in enumerate(pq.read_table(folder / f"vocab/{name}.parquet")["value"].to_pylist())
        }
        for name in names
    }
    expected = set()
    for row in rows:
        user, country, item, artist, mark = (ids[name][row[name]] for name in names)
        hour = row["time"] // 3600 % 24
        expected.add((
            row["time"], user, item,
            naive_cross([user, artist], 5000), naive_cross([user, mark], 97), naive_cross([item, hour], 1000),
            naive_cross([country, item, hour], 2000),
        ))  # fmt: skip
    config = SamplesConfig(history=8, candidates=1, least=0, batch_by="rows", shuffle=False)
    found = set()
    for stream in open_sequences(str(folder), spec, Ranks(16, 0, 1), config, users=0, epochs=1, seed=0).values():
        for batch in stream.batches():
            bags: dict[str, Any] = batch.sparse_features.to_dict()
            shown = [[int(i) for i in bags[f.name].values()] for f in spec.sparse[-4:]]
            last = batch.lengths.cumsum(0)[: batch.num_rows] - 1  # the candidate of each sample
            items = bags["item"].values()[last].tolist()
            found |= {*zip(batch.times[last].tolist(), bags["user"].values().tolist(), items, *shown, strict=True)}
    assert found == expected


def test_crosses_that_cannot_be_are_refused(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "log.csv", random_rows(8, 300))
    with pytest.raises(ValueError, match="rows of hash feature 'a' must be at least 2"):
        SizedCross.parse("a=user,item:1")
    for text in ("a=user,item", "user,item:100", "a=:100", "a=user,item:many"):
        with pytest.raises(ValueError, match="a cross must be name=part,part:rows: got '"):
            SizedCross.parse(text)
    assert SizedCross.parse("a=user,hour:10") == SizedCross(cross=Cross(name="a", of=("user", "hour")), rows=10)
    for text in ("a=user,genre:100", "a=user:100", "a=user,time:100"):
        with pytest.raises(ValueError, match="cross 'a' must be of two or more of"):
            prepare([path], tmp_path / "data", columns=replace(COLUMNS, crosses=(SizedCross.parse(text),)))
    with pytest.raises(ValueError, match=r"features of events and crosses must be .*each named once"):
        prepare([path], tmp_path / "data", columns=replace(COLUMNS, crosses=(SizedCross.parse("item=user,hour:9"),)))
    assert not (tmp_path / "data.events").exists()
    done = run_python([SCRIPT, "--input", str(path), "--output", "x", "--marks", "is_organic"], tmp_path)
    assert done.returncode != 0
    assert "must have the column 'is_organic' of --marks: got ['user', 'item'" in done.stderr


def test_the_readme_makes_yambda_what_the_preset_reads(tmp_path: Path) -> None:
    random = np.random.default_rng(9)
    kinds = ("listen", "listen", "listen", "listen", "like", "dislike", "unlike", "undislike")
    rows: list[dict[str, Any]] = []
    for user, stamp, item, kind in zip(
        random.integers(1, 20, 900).tolist(),
        random.integers(0, 26_000_000, 900).tolist(),
        random.integers(1, 40, 900).tolist(),
        random.integers(0, len(kinds), 900),
        strict=True,
    ):
        listened = int(random.integers(0, 101)) if kinds[kind] == "listen" else None
        rows.append({
            "uid": user, "timestamp": stamp, "item_id": item, "is_organic": stamp % 2, "event_type": kinds[kind],
            "played_ratio_pct": listened,
        })  # fmt: skip
    table = pa.Table.from_pylist(rows)
    kind_place = table.column_names.index("event_type")
    table = table.set_column(kind_place, "event_type", table["event_type"].dictionary_encode())
    pq.write_table(table, tmp_path / "multi_event.parquet")
    of = {"artist": [(1, 7), (2, 8), (1, 9), (5, 7)], "album": [(item, item * 2) for item in range(1, 30)]}
    for kind_of, pairs in of.items():
        pairs_table = pa.table({f"{kind_of}_id": [b for _, b in pairs], "item_id": [a for a, _ in pairs]})
        pq.write_table(pairs_table, tmp_path / f"{kind_of}_item_mapping.parquet")

    (_, page) = (ROOT / "data/events/README.md").read_text().split("## Yambda-5b")
    (tmp_path / "join.py").write_text(page.split("```python\n")[1].split("```")[0])
    done = run_python(["join.py"], tmp_path)
    assert done.returncode == 0, done.stderr
    first_artist, first_album = (dict(reversed(of[each])) for each in ("artist", "album"))
    assert pq.read_table(tmp_path / "yambda-5b.parquet").to_pylist() == [
        {
            "uid": row["uid"], "item": row["item_id"], "artist": first_artist.get(row["item_id"], 0),
            "album": first_album.get(row["item_id"], 0), "time": row["timestamp"], "is_organic": row["is_organic"],
            "action": row["event_type"]
            if row["event_type"] != "listen" else "listen_plus" if row["played_ratio_pct"] >= 50 else "skip",
        }
        for row in rows
    ]  # fmt: skip
    _, _, *options = shlex.split(page.split("```sh\npython ")[1].split("```")[0].replace("\\\n", " "))
    done = run_python([SCRIPT, "--input", *options], tmp_path)
    assert done.returncode == 0, done.stderr

    found, preset = Manifest.load(str(tmp_path / "prepared/yambda-5b")).spec, yambda_spec()
    assert found.history is not None
    assert preset.history is not None
    assert {f.name for f in found.sparse} == {f.name for f in preset.sparse}
    crossed = [{f.name: f.rows for f in spec.sparse if f.encoding == "hash"} for spec in (found, preset)]
    assert crossed[0] == crossed[1]
    assert {*found.history.actions} == {*preset.history.actions}
    assert found.history.mark_names == preset.history.mark_names
    assert found.history == replace(
        preset.history, actions=found.history.actions, counted=True, marks=found.history.marks
    )
    assert found.label == preset.label
