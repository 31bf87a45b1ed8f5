"""Users whose likes depend on crosses, and marks, which only crosses read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dlrm_torchrec.datasets.prepared.manifest import DataFile, Manifest, Split
from dlrm_torchrec.datasets.random import counter
from dlrm_torchrec.datasets.sequences import crossed
from dlrm_torchrec.datasets.sequences.crossed import CrossedInterests
from dlrm_torchrec.datasets.sequences.log import history_of
from dlrm_torchrec.datasets.sequences.open import open_sequences
from dlrm_torchrec.datasets.sequences.samples import Samples, Window, find_samples
from dlrm_torchrec.datasets.sequences.stored import read_log
from dlrm_torchrec.datasets.sequences.yambda import ROWS, TWIN_SAMPLES, yambda_spec, yambda_twin_spec
from dlrm_torchrec.datasets.stream import Ranks
from dlrm_torchrec.sequence_schema import History, Mark

SPEC = yambda_twin_spec()


def samples_of(world: CrossedInterests) -> Samples:
    return find_samples(world.log(), history_of(SPEC), TWIN_SAMPLES, split="val", window=Window(0, 1 << 60))


def test_the_tables_are_those_of_the_reference_and_the_twin_s_are_in_proportion() -> None:
    spec = yambda_spec()
    assert sum(feature.rows for feature in spec.sparse) == 293_051_712
    assert {feature.name: feature.rows for feature in spec.sparse} == ROWS
    assert 4 * 512 * sum(ROWS.values()) / 2**30 == pytest.approx(558.95, abs=0.01)
    assert max(feature.pooling_factor for feature in spec.sparse) == 3 * 1362 + 1
    for large, small in zip(spec.sparse, SPEC.sparse, strict=True):
        assert small.rows == pytest.approx(large.rows / 10_000, abs=0.5)
        assert (small.name, small.encoding, small.multi_hot) == (large.name, large.encoding, large.multi_hot)
    assert history_of(spec).crosses == history_of(SPEC).crosses
    assert len(history_of(spec).crosses) == 7


def test_chances_are_calibrated_and_crosses_and_histories_tell_much(monkeypatch: pytest.MonkeyPatch) -> None:
    world = CrossedInterests(SPEC, users=20, seed=3)
    samples = samples_of(world)
    found, listened = world.probabilities(samples), samples.log.actions[samples.candidates] == 2
    for low in np.arange(0, 1, 0.2):
        rows = (found >= low) & (found < low + 0.2)
        expected, count = found[rows].mean(), rows.sum()
        assert count > 300
        assert abs(listened[rows].mean() - expected) < 5 * np.sqrt(expected * (1 - expected) / count)
    best = world.best_auc(samples)
    assert best > world.best_auc(samples, use_history=False) + 0.03
    monkeypatch.setattr(crossed, "CROSSED", 0.0)
    assert best > world.best_auc(samples) + 0.03


def test_a_cross_has_an_effect_for_each_of_its_ids_together() -> None:
    world = CrossedInterests(SPEC, users=9, seed=5)
    log = world.log()
    logits, users = world._logits(log)[:, 0], log.user_of
    hours = log.times // 3600 % 24
    parts = [log.events["item"], users, hours, log.events["is_organic"]]
    _, group = np.unique(np.stack(parts), axis=1, return_inverse=True)
    order = np.argsort(group.reshape(-1), kind="stable")
    same = np.diff(group.reshape(-1)[order]) == 0
    assert same.sum() > 100
    assert np.diff(logits[order])[same] == pytest.approx(0, abs=1e-12)  # all that a logit depends on is equal
    other_hour = np.flatnonzero((np.diff(log.events["item"]) == 0) & (np.diff(users) == 0) & (np.diff(hours) != 0))
    assert np.abs(np.diff(logits)[other_hour]).min() > 1e-6


def test_batches_hold_hashes_of_marks_and_files_hold_marks(tmp_path: Path) -> None:
    stream = open_sequences("synthetic", SPEC, Ranks(16, 0, 1), TWIN_SAMPLES, users=3, epochs=1, seed=2)["train"]
    log = stream.samples.log
    batch = next(iter(stream.batches()))
    assert "is_organic" not in batch.sparse_features.keys()  # noqa: SIM118  # a list of names
    uids = batch.sparse_features["uid"].values().tolist()
    found = batch.sparse_features["user_x_is_organic"].values().tolist()
    expected = set()
    for uid in set(uids):
        for organic in (0, 1):
            word = counter.word(counter.word(np.uint64(0), np.uint64(uid)), np.uint64(organic))
            expected.add(1 + int(word) % (SPEC.sparse[9].rows - 1))
    assert set(found) <= expected
    assert len(set(found)) > 1

    def lists(values: np.ndarray) -> list[list[int]]:
        return [values[first:end].tolist() for first, end in zip(log.starts, log.starts[1:], strict=False)]

    columns: dict[str, Any] = {"uid": log.users["uid"], "time": lists(log.times), "action": lists(log.actions)}
    columns |= {name: lists(values) for name, values in log.events.items()}
    pq.write_table(pa.table(columns), tmp_path / "0.parquet")
    manifest = Manifest(spec=SPEC, splits={"users": Split(files=(DataFile(path="0.parquet", rows=3),))})
    again = read_log(manifest, str(tmp_path))
    assert (again.events["is_organic"] == log.events["is_organic"]).all()
    wrong = columns | {"is_organic": [[2] * len(each) for each in columns["time"]]}
    pq.write_table(pa.table(wrong), tmp_path / "0.parquet")
    with pytest.raises(ValueError, match=r"column 'is_organic' of .* must hold ids in \[0, 2\): got 2; prepare"):
        read_log(manifest, str(tmp_path))
    pq.write_table(pa.table(columns).drop_columns("is_organic"), tmp_path / "0.parquet")
    with pytest.raises(ValueError, match="got an unfit 'is_organic' among"):
        read_log(manifest, str(tmp_path))


@pytest.mark.parametrize("names", [("item",), ("time",), ("a", "a")])
def test_marks_are_columns_of_their_own(names: tuple[str, ...]) -> None:
    marks = tuple(Mark(name=name, rows=2) for name in names)
    history = History(events=("item",), actions=("like",), positive=("like",), marks=marks)
    with pytest.raises(
        ValueError, match=r"^features of events and crosses must .* none be one of the distinct columns"
    ):
        history.check(["item", "user"])


def test_no_feature_or_mark_is_called_as_the_hour_of_the_day() -> None:
    history = History(events=("item",), actions=("like",), positive=("like",))
    for marks, features in (((Mark(name="hour", rows=2),), ["item"]), ((), ["item", "hour"])):
        with pytest.raises(ValueError, match=r"^features and marks of a history must not be called 'hour', as crosses"):
            replace(history, marks=marks).check(features)


def test_a_cross_of_an_unknown_part_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^cross 'user_x_is_organic' must be of two or more of .*'hour'"):
        replace(SPEC, history=replace(history_of(SPEC), marks=()))
