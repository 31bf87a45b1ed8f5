"""Histories written by hand: read as they are, and refused where they break the spec."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dlrm_torchrec.datasets.prepared.manifest import DataFile, Manifest, Split
from dlrm_torchrec.datasets.sequences.config import SamplesConfig
from dlrm_torchrec.datasets.sequences.log import EventLog
from dlrm_torchrec.datasets.sequences.open import open_sequences
from dlrm_torchrec.datasets.sequences.stored import read_log, read_windows
from dlrm_torchrec.datasets.stream import Ranks
from dlrm_torchrec.datasets.summary import summarise
from dlrm_torchrec.datasets.synthetic.specs import browsing_spec
from tests.datasets.sequences.logs import SPEC, random_log, read_batch

WINDOWS = {"train": (0, 200), "val": (200, 1000)}


def write_log(folder: Path, log: EventLog, *, files: int = 2, **changed: Any) -> Manifest:
    """A prepared folder, as a user may write it: with int64 lists; ``changed`` replaces columns of the first file."""
    folder.mkdir()
    cuts = np.linspace(0, log.num_users, files + 1).astype(int)
    entries = []
    for number, (first, end) in enumerate(pairwise(cuts.tolist())):
        users = range(first, end)

        def lists(values: np.ndarray, users: range = users) -> list[list[int]]:
            return [values[log.starts[user] : log.starts[user + 1]].tolist() for user in users]

        columns = {name: values[first:end].tolist() for name, values in log.users.items()}
        columns |= {"time": lists(log.times), "action": lists(log.actions)}
        columns |= {name: lists(values) for name, values in log.events.items()}
        if number == 0:
            columns |= changed
        table = pa.table({name: values for name, values in columns.items() if values is not None})
        pq.write_table(table, folder / f"{number}.parquet", row_group_size=4)
        entries.append(DataFile(path=f"{number}.parquet", rows=end - first))
    manifest = Manifest(spec=SPEC, splits={"users": Split(files=tuple(entries))}, windows=WINDOWS)
    manifest.save(str(folder))
    return Manifest.load(str(folder))


def test_files_give_the_log_that_was_written(tmp_path: Path) -> None:
    log = random_log(2)
    manifest = write_log(tmp_path / "data", log)
    found = read_log(manifest, str(tmp_path / "data"))
    for name in ("starts", "times", "actions"):
        assert (getattr(found, name) == getattr(log, name)).all()
        assert getattr(found, name).dtype == getattr(log, name).dtype
    for name in log.events:
        assert (found.events[name] == log.events[name]).all()
    for name in log.users:
        assert (found.users[name] == log.users[name]).all()
    assert read_windows(manifest, "data") == WINDOWS


def test_runs_open_prepared_histories(tmp_path: Path) -> None:
    data = str(tmp_path / "data")
    write_log(Path(data), random_log(2))
    summary = summarise(data, SPEC)
    assert summary.rows == {"users": 30}
    assert len(summary.files) == 2
    streams = open_sequences(data, summary.spec, Ranks(8, 0, 1), SamplesConfig(history=9), users=0, epochs=2, seed=0)
    assert streams.keys() == {"train", "val"}
    for split, (first, end) in WINDOWS.items():
        reads = [read for batch in streams[split].batches() for read in read_batch(batch)]
        assert reads
        assert all(first <= read.times[-1] < end for read in reads)
    last = SamplesConfig(history=9, held_out="last")
    assert open_sequences(data, summary.spec, Ranks(8, 0, 1), last, users=0, epochs=1, seed=0).keys() == {
        "train",
        "val",
        "test",
    }


def first_rows(log: EventLog, name: str) -> list[list[int]]:
    columns: dict[str, np.ndarray] = {"time": log.times, "action": log.actions, **log.events}
    values = columns[name]
    return [values[log.starts[user] : log.starts[user + 1]].tolist() for user in range(log.num_users // 2)]


@pytest.mark.parametrize(
    ("column", "change", "message"),
    [
        (
            "song",
            lambda rows: [[50, *row[1:]] for row in rows],
            r"'song' of .*0.parquet must hold ids in \[0, 50\): got 50",
        ),
        ("action", lambda rows: [[0, *row[1:]] for row in rows], r"'action' of .* must hold ids in \[1, 4\): got 0"),
        (
            "action",
            lambda rows: [[257, *row[1:]] for row in rows],
            r"'action' of .* must hold ids in \[1, 4\): got 257",
        ),
        (
            "time",
            lambda rows: [row[::-1] for row in rows],
            r"'time' of .* must ascend within a user: got \d+ after \d+",
        ),
        ("artist", lambda rows: [row[1:] for row in rows], r"'artist' of .* must have an entry for each event: got"),
        ("artist", lambda rows: [1] * len(rows), "must have the columns .*: got an unfit 'artist' among"),
        ("artist", lambda _: None, "must have the columns .*: got an unfit 'artist' among"),
        ("song", lambda rows: [None, *rows[1:]], "'song' of .* must have no nulls"),
    ],
)
def test_files_that_break_the_spec_are_refused(tmp_path: Path, column: str, change: Any, message: str) -> None:
    log = random_log(5)
    while (np.diff(log.starts) < 2).any():  # so that every user has events to break
        keep = np.diff(log.starts) >= 2
        log = only(log, keep)
    manifest = write_log(tmp_path / "data", log, **{column: change(first_rows(log, column))})
    with pytest.raises(ValueError, match=message):
        read_log(manifest, str(tmp_path / "data"))


def only(log: EventLog, keep: np.ndarray) -> EventLog:
    """The log of some of its users."""
    events = keep[log.user_of]
    return EventLog(
        starts=np.concatenate([[0], np.cumsum(np.diff(log.starts)[keep])]),
        times=log.times[events],
        actions=log.actions[events],
        events={name: values[events] for name, values in log.events.items()},
        users={name: values[keep] for name, values in log.users.items()},
    )


def test_other_data_are_refused(tmp_path: Path) -> None:
    manifest = write_log(tmp_path / "data", random_log(0))
    with pytest.raises(ValueError, match=r"must have a window 'val' of times in dataset.json: got \['train'\]"):
        read_windows(replace(manifest, windows={"train": (0, 1)}), "data")
    with pytest.raises(ValueError, match=r"prepared histories must have the split 'users': got \['train'\]"):
        read_log(replace(manifest, splits={"train": manifest.splits["users"]}), "data")
    with pytest.raises(ValueError, match="data for sequences must have a history in their spec: got none in 'songs'"):
        read_log(replace(manifest, spec=replace(SPEC, history=None)), "data")
    with pytest.raises(ValueError, match="histories must have a positive action to be told: got none in data; prepare"):
        open_sequences("data", browsing_spec(), Ranks(8, 0, 1), SamplesConfig(), users=0, epochs=1, seed=0)
    text = (tmp_path / "data/dataset.json").read_text()
    (tmp_path / "data/dataset.json").write_text(text.replace("1000", "100"))
    with pytest.raises(ValueError, match=r"window 'val' must be a first second and a later one that .*: got \[200"):
        Manifest.load(str(tmp_path / "data"))
