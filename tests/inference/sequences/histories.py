"""A spec of histories of all encodings, users' raw events, and what training makes of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dlrm_torchrec.datasets.sequences.batch import SequenceBatch
from dlrm_torchrec.datasets.sequences.collate import Collation
from dlrm_torchrec.datasets.sequences.config import SamplesConfig
from dlrm_torchrec.datasets.sequences.log import EventLog, history_of
from dlrm_torchrec.datasets.sequences.samples import Rule, Samples
from dlrm_torchrec.inference.lookups import Vocabulary
from dlrm_torchrec.inference.sequences.history_encoder import HistoryEncoder
from dlrm_torchrec.schema import DatasetSpec, History, SparseFeature
from dlrm_torchrec.sequence_schema import Cross, Mark

ITEMS, CITIES = [f"i{number}" for number in range(40)], ["Kraków", "Paris", "7"]
SCREENS = ["tv", "phone", "3"]
ACTIONS = ("skip", "like", "5")
SPEC = DatasetSpec(
    name="log",
    label="like",
    dense=(),
    sparse=(
        SparseFeature(name="city", rows=2 + len(CITIES), encoding="vocab"),
        SparseFeature(name="item", column="track", rows=2 + len(ITEMS), encoding="vocab", multi_hot=True),
        SparseFeature(name="cross", rows=1000, encoding="hash", multi_hot=True),
        SparseFeature(name="artist", rows=9, multi_hot=True),
        SparseFeature(name="segment", rows=5),
    ),
    history=History(
        events=("item", "artist"),
        actions=ACTIONS,
        positive=("like",),
        user="city",
        crosses=(Cross(name="cross", of=("segment", "item", "hour")),),
    ),
)
MARKED = replace(
    SPEC,
    history=replace(
        history_of(SPEC),
        marks=(
            Mark(name="organic", rows=2, column="is_organic"),
            Mark(name="screen", rows=2 + len(SCREENS), encoding="vocab"),
            Mark(name="unread", rows=9),
        ),
        crosses=(Cross(name="cross", of=("segment", "item", "organic", "screen", "hour")),),
    ),
)
PLAIN = replace(
    SPEC,
    sparse=tuple(feature for feature in SPEC.sparse if feature.name != "cross"),
    history=History(events=("item", "artist"), actions=ACTIONS, positive=("like",), user="city"),
)
WORDS = {"city": CITIES, "item": ITEMS, "screen": SCREENS}
LOOKUPS = {name: Vocabulary.of(pa.array(values)).lookup for name, values in WORDS.items()}


def encoder(samples: SamplesConfig, spec: DatasetSpec = SPEC) -> HistoryEncoder:
    return HistoryEncoder(spec.to_json(), LOOKUPS, vars(samples))


def write_vocabularies(folder: Path, spec: DatasetSpec = SPEC) -> dict[str, str]:
    """The files of the vocabularies of a spec."""
    named = [each.name for each in (*spec.sparse, *spec.marks) if each.encoding == "vocab"]
    for name in named:
        pq.write_table(pa.table({"value": WORDS[name]}), folder / f"{name}.parquet")
    return {name: str(folder / f"{name}.parquet") for name in named}


def draw(users: int, seed: int, *, longest: int = 12) -> list[dict[str, Any]]:
    """Raw rows of so many users: some have no history, and all candidates of a user are shown at one time."""
    random = np.random.default_rng(seed)
    rows = []
    for number in range(users):
        events, candidates = int(random.integers(0, longest + 1)) * (number > 0), int(random.integers(1, 5))
        times = (1_700_000_000 + np.sort(random.integers(0, 10**6, events + 1))).tolist()
        places = random.integers(0, len(ITEMS), events + candidates)
        tracks, artists = [ITEMS[place] for place in places], random.integers(0, 9, len(places)).tolist()
        rows.append(
            {
                "city": CITIES[random.integers(len(CITIES))],
                "segment": int(random.integers(5)),
                "track": tracks[:events],
                "artist": artists[:events],
                "action": [ACTIONS[place] for place in random.integers(0, len(ACTIONS), events)],
                "time": times[:-1],
                "candidates.track": tracks[events:],
                "candidates.artist": artists[events:],
                "candidates.time": times[-1],
            }
        )
    return rows


def marked(rows: list[dict[str, Any]], seed: int) -> list[dict[str, Any]]:
    """The rows with random marks of their candidates."""
    random, found = np.random.default_rng(seed), []
    for row in rows:
        count = len(row["candidates.track"])
        organic, screens = random.integers(0, 2, count).tolist(), random.integers(0, len(SCREENS), count)
        marks = {"candidates.is_organic": organic, "candidates.screen": [SCREENS[place] for place in screens]}
        found.append(row | marks)
    return found


def columns(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    return {name: [row[name] for row in rows] for name in rows[0]}


def batch_of(rows: list[dict[str, Any]], samples: SamplesConfig, spec: DatasetSpec = SPEC) -> SequenceBatch:
    """The batch that training would make of these users, if their candidates were the last events of a log."""
    if history_of(spec).crosses:  # each candidate has a sample of its own
        own = [name for name in rows[0] if name.startswith("candidates.") and name != "candidates.time"]
        rows = [
            row | {name: row[name][place : place + 1] for name in own}
            for row in rows
            for place in range(len(row[own[0]]))
        ]
    ids: Mapping[str, list[str]] = {"city": CITIES, "track": ITEMS}

    def encoded(name: str, value: Any) -> int:
        return 2 + ids[name].index(value) if name in ids else int(value)

    counts = np.array([(len(row["track"]), len(row["candidates.track"])) for row in rows])
    starts = np.concatenate([[0], counts.sum(1).cumsum()])
    events = {
        feature: np.array(
            [encoded(raw, value) for row in rows for value in (*row[raw], *row[f"candidates.{raw}"])], np.int32
        )
        for feature, raw in (("item", "track"), ("artist", "artist"))
    }
    events |= {mark.name: _marks(rows, mark) for mark in spec.marks}
    happened = [(*row["time"], *[row["candidates.time"]] * len(row["candidates.track"])) for row in rows]
    done = [[*(1 + ACTIONS.index(each) for each in row["action"]), *[1] * len(row["candidates.track"])] for row in rows]
    log = EventLog(
        starts=starts,
        times=np.array([time for times in happened for time in times], np.int64),
        actions=np.array([action for actions in done for action in actions], np.uint8),
        events=events,
        users={name: np.array([encoded(name, row[name]) for row in rows], np.int32) for name in ("city", "segment")},
    )
    asked = [np.arange(end - count, end) for end, (_, count) in zip(starts[1:], counts, strict=True)]
    bounds = np.concatenate([[0], counts[:, 1].cumsum()])
    drawn = Samples(log, Rule.of(samples, history_of(spec)), np.concatenate(asked), bounds)
    which = np.arange(len(rows))
    return Collation(spec, drawn).batch(which, padded_rows=len(rows), global_rows=int(counts[:, 1].sum()))


def _marks(rows: list[dict[str, Any]], mark: SparseFeature) -> np.ndarray[Any, np.dtype[np.int32]]:
    """The ids of a mark of all events; nothing reads those of histories."""
    screens = {screen: 2 + place for place, screen in enumerate(SCREENS)}
    ids = []
    for row in rows:
        asked = row.get(f"candidates.{mark.raw}", [0] * len(row["candidates.track"]))
        ids += [0] * len(row["track"])
        ids += [screens.get(value, 1) if mark.name == "screen" else value for value in asked]
    return np.array(ids, np.int32)
