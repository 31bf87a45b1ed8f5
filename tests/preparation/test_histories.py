"""Logs of events that cannot be trained on, and those that lack some values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from dlrm_torchrec.datasets.sequences.config import SamplesConfig
from dlrm_torchrec.datasets.sequences.open import open_sequences
from dlrm_torchrec.datasets.sequences.stored import read_log
from dlrm_torchrec.datasets.stream import Ranks
from dlrm_torchrec.inference.lookups import MISSING, Vocabulary
from dlrm_torchrec.inference.sequences.history_encoder import HistoryEncoder
from dlrm_torchrec.preparation.time_windows import Shares
from tests.data.test_events import COLUMNS, prepare, random_rows, write_csv
from tests.recipe import ROOT
from tests.scripts import run_python

LATEST = 1_700_000_000 + 799


@pytest.mark.parametrize(
    ("column", "changed", "shares", "message"),
    [
        (
            "time",
            lambda times: [LATEST] * len(times),
            Shares(),
            r"times must differ .*: got 1700000799 s for all of them; .*--val_share 0 and train with --samples.held_",
        ),
        (
            "user",
            lambda users: [f"u{number}" for number in range(len(users))],
            Shares(),
            r"users must have several events.*: got one of each of 300 users in column 'user'; name another column",
        ),
        (
            "time",
            lambda times: times,
            Shares(gap_s=800),
            r"window 'train' must have events: got none with .* gap of 800 s; lower the shares or the gap",
        ),
        (
            "time",
            lambda times: [LATEST - 10**6] * 270 + times[270:],
            Shares(val=0.2),
            r"window 'train' must have events: got none with shares 0.2 and 0.0 and a gap of 0 s; lower the shares",
        ),
        (
            "time",
            lambda times: [LATEST + 1] * 100 + times[100:],
            Shares(test=0.1),
            r"window 'val' must have events: got none with shares 0.1 and 0.1 and a gap of 0 s; raise its share or",
        ),
    ],
)
def test_what_cannot_be_trained_on_is_refused(
    tmp_path: Path, column: str, changed: Callable[[list[Any]], list[Any]], shares: Shares, message: str
) -> None:
    rows = random_rows(1, 300)
    values = changed([row[column] for row in rows])
    path = write_csv(tmp_path / "log.csv", [row | {column: value} for row, value in zip(rows, values, strict=True)])
    with pytest.raises(ValueError, match=message):
        prepare([path], tmp_path / "data", shares=shares)
    assert [each.name for each in tmp_path.iterdir()] == ["log.csv"]


def test_a_missing_category_has_its_id_in_training_and_in_requests(tmp_path: Path) -> None:
    random = np.random.default_rng(2)
    rows = random_rows(3, 900)
    for row in rows:
        for name in ("artist", "country"):
            row[name] = row[name] if random.random() < 0.7 else ("", "NA")[random.integers(2)]
    path = write_csv(tmp_path / "log.csv", rows)
    manifest = prepare(
        [path], tmp_path / "data", shares=Shares(val=0.2), columns=replace(COLUMNS, marks=("country",), users=())
    )
    assert manifest.report["rows_quarantined"] == 0
    spec, folder = manifest.spec, str(tmp_path / "data")
    events = read_log(manifest, folder).events
    for name in ("artist", "country"):
        assert (events[name] == MISSING).sum() == sum(row[name] in ("", "NA") for row in rows)
    samples = SamplesConfig(history=20, batch_by="rows", shuffle=False)
    stream = open_sequences(folder, spec, Ranks(64, 0, 1), samples, users=0, epochs=1, seed=0)["val"]
    words = {
        name: Vocabulary.of(pq.read_table(tmp_path / f"data/vocab/{name}.parquet")["value"].combine_chunks())
        for name in ("user", "item", "artist")
    }
    encode = HistoryEncoder(spec.to_json(), {name: each.lookup for name, each in words.items()}, vars(samples))
    raw = {name: [None, "none of these", *map(str, each.values.to_pylist())] for name, each in words.items()}
    assert spec.history is not None
    missing = 0
    for batch in stream.batches():
        bags = batch.sparse_features.to_dict()
        requests = []
        for sample, end in enumerate(batch.lengths.cumsum(0).tolist()):
            past = slice(end - int(batch.lengths[sample]), end - 1)
            request: dict[str, Any] = {"user": raw["user"][int(bags["user"].values()[sample])]}
            request |= {"time": batch.times[past].tolist()}
            request |= {"action": [spec.history.actions[each - 1] for each in batch.actions[past].tolist()]}
            request |= {"candidates.time": int(batch.times[end - 1])}
            for name in ("item", "artist"):
                values = [raw[name][each] for each in bags[name].values().tolist()]
                request |= {name: values[past], f"candidates.{name}": [values[end - 1]]}
            requests.append(request)
        found = encode({name: [request[name] for request in requests] for name in requests[0]})
        for feature, ids in zip(spec.sparse, found.ids, strict=True):
            assert ids.tolist() == bags[feature.name].values().tolist(), feature.name
        missing += int((bags["artist"].values() == MISSING).sum())
    assert missing > 50


def test_help_shows_separators_as_they_are_typed(tmp_path: Path) -> None:
    for name in ("events", "criteo", "movielens"):
        told = run_python([str(ROOT / f"data/{name}/prepare.py"), "--help"], tmp_path).stdout
        assert r":: or \t;" in " ".join(told.replace("│", "").split())
