"""Windows of histories: their samples, that nothing of the future is in them, and what tells them apart."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch

from dlrm_torchrec.datasets.sequences.batch import SequenceBatch
from dlrm_torchrec.datasets.sequences.config import SamplesConfig
from dlrm_torchrec.datasets.sequences.log import EventLog
from dlrm_torchrec.datasets.sequences.samples import Window
from dlrm_torchrec.datasets.stream import Ranks
from dlrm_torchrec.datasets.summary import Summary
from dlrm_torchrec.datasets.synthetic.specs import interests_spec
from dlrm_torchrec.datasets.windows import histories
from dlrm_torchrec.datasets.windows.config import SequenceWindowsConfig
from dlrm_torchrec.datasets.windows.histories import SequenceWindow, sequence_windows, summarise_windows
from dlrm_torchrec.datasets.windows.open import remaining
from tests.datasets.sequences.logs import SPEC, Read, naive_read, naive_samples, random_log, read_batch

SAMPLES = SamplesConfig(history=6, candidates=3, anchors=("listen", "like"), batch_by="rows")
LENGTH_S = 100
HUNDRED_S = SequenceWindowsConfig(length=f"{LENGTH_S}s")
ALONE = Ranks(8, 0, 1)


def windows_of(log: EventLog, samples: SamplesConfig = SAMPLES, *, counted: bool = False) -> list[SequenceWindow]:
    """The windows of a log as if a prepared folder held it."""
    assert SPEC.history is not None
    spec = replace(SPEC, history=replace(SPEC.history, counted=counted))
    with (
        patch.object(histories, "open_log", return_value=(log, None)),
        patch.object(histories, "load_spec", return_value=spec),
    ):
        return sequence_windows("log", spec, samples, HUNDRED_S, users=0, seed=0)[1]


def batches(window: SequenceWindow, ranks: Ranks = ALONE) -> list[SequenceBatch]:
    return [*window.train(ranks, epochs=2, seed=3).batches(), *window.evaluation(ranks).batches()]


def in_order(samples: list[Read]) -> list[Read]:
    """The samples in an order of their own."""
    return sorted(samples, key=repr)


def part_of(log: EventLog, keep: np.ndarray[Any, np.dtype[np.bool_]]) -> EventLog:
    """The events ``keep`` of the same users."""
    counts = np.bincount(log.user_of[keep], minlength=log.num_users)
    return EventLog(
        starts=np.concatenate([[0], np.cumsum(counts)]),
        times=log.times[keep],
        actions=log.actions[keep],
        events={name: ids[keep] for name, ids in log.events.items()},
        users=log.users,
    )


def moved(log: EventLog, first_s: int, by_s: int) -> EventLog:
    """The log and, once more, its events in the window that begins at ``first_s``, so much later."""
    again = (log.times >= first_s) & (log.times < first_s + LENGTH_S)
    users = np.concatenate([log.user_of, log.user_of[again]])
    times = np.concatenate([log.times, log.times[again] + by_s])
    order = np.lexsort((times, users))
    events = {name: np.concatenate([ids, ids[again]])[order] for name, ids in log.events.items()}
    starts = np.concatenate([[0], np.cumsum(np.bincount(users, minlength=log.num_users))])
    actions = np.concatenate([log.actions, log.actions[again]])[order]
    return EventLog(starts=starts, times=times[order], actions=actions, events=events, users=log.users)


def begun(windows: list[SequenceWindow]) -> list[dict[str, object]]:
    """What a run keeps of these windows."""
    return [{"name": each.name, "day": each.day, "digest": each.digest} for each in windows]


@pytest.mark.parametrize("seed", range(5))
def test_windows_have_the_samples_of_a_plain_loop_over_their_times(seed: int) -> None:
    log = random_log(seed)
    windows = windows_of(log)
    assert [window.day * 86_400 for window in windows] == pytest.approx([0, 100, 200, 300])
    for number, window in enumerate(windows):
        times = Window(number * LENGTH_S, (number + 1) * LENGTH_S)
        expected = [naive_read(log, each) for each in naive_samples(log, SAMPLES, "train", times)]
        assert len(window.samples) == len(expected)
        read = [each for batch in window.evaluation(ALONE).batches() for each in read_batch(batch)]
        assert in_order(read) == in_order(expected)
        train = window.train(ALONE, epochs=2, seed=3)
        assert train.num_steps == window.steps(ALONE.global_batch_size, epochs=2)
        trained = [each for batch in train.batches() for each in read_batch(batch)]
        assert in_order(trained) == in_order([*expected, *expected])
        two = [each for rank in (0, 1) for batch in window.train(Ranks(8, rank, 2), epochs=2, seed=3).batches()
               for each in read_batch(batch)]  # fmt: skip
        assert in_order(two) == in_order(trained)


def test_a_window_is_the_same_whatever_happens_later() -> None:
    log = random_log(7)
    whole = windows_of(log)
    for number, window in enumerate(whole):
        until = windows_of(part_of(log, log.times < (number + 1) * LENGTH_S))
        assert begun(until) == begun(whole[: number + 1])
        for one, other in zip(batches(until[-1]), batches(window), strict=True):
            assert read_batch(one, crosses=True) == read_batch(other, crosses=True)
            assert torch.equal(one.users, other.users)


def test_a_window_that_changed_or_comes_twice_is_refused() -> None:
    log = random_log(8)
    windows = windows_of(log)
    assert len({window.digest for window in windows}) == 4
    assert remaining(begun(windows[:2]), windows, HUNDRED_S, is_open=True) == windows[1:]
    for name in ("actions", "times", "song", "country"):
        changed = _with_one_change(log, name)
        with pytest.raises(ValueError, match=r"window 1970-01-01.* must hold the rows that the run was trained on"):
            remaining(begun(windows), windows_of(changed), HUNDRED_S, is_open=False)
    with pytest.raises(ValueError, match=r"rows must be given once: got those of window 100 again as window 400"):
        remaining([], windows_of(moved(log, 100, 300), counted=True), HUNDRED_S, is_open=False)
    with pytest.raises(ValueError, match=r"windows must follow each other without a gap: got 200 after 0"):
        remaining([], windows_of(part_of(log, log.times // 100 != 1), counted=True), HUNDRED_S, is_open=False)


def _with_one_change(log: EventLog, name: str) -> EventLog:
    """The log with another value in the second window."""
    place = int(np.flatnonzero(log.times // LENGTH_S == 1)[0])
    while name == "times" and log.times[place] == log.times[place + 1]:
        place += 1
    if name == "country":
        users = {**log.users, name: log.users[name] + (np.arange(log.num_users) == log.user_of[place])}
        return replace(log, users=users)
    change = (np.arange(len(log)) == place).astype(np.int64)
    if name == "song":
        return replace(log, events={**log.events, name: (log.events[name] + change) % 50})
    if name == "actions":
        return replace(log, actions=(log.actions % 3 * change + log.actions * (1 - change) + change).astype(np.uint8))
    return replace(log, times=log.times + change)


def test_a_run_is_told_the_candidates_of_all_windows_and_their_users() -> None:
    log = random_log(5)
    windows = windows_of(log)
    with patch.object(histories, "summarise", return_value=Summary(spec=SPEC, rows={"users": log.num_users})):
        found = summarise_windows("log", windows[1:], windows[0].spec)
    users = [batch.users[batch.num_candidates > 0] for window in windows[1:] for batch in batches(window)]
    expected = sum(batch.num_rows for window in windows[1:] for batch in window.evaluation(ALONE).batches())
    assert dict(found.rows) == {"windows": expected}
    assert dict(found.users) == {"windows": len(torch.cat(users).unique())}
    assert found.spec == windows[0].spec
    assert summarise_windows("synthetic", windows, windows[0].spec).rows == {}


def test_days_of_synthetic_users_have_a_best_auc() -> None:
    config = SequenceWindowsConfig(days=5)
    spec, windows = sequence_windows("synthetic", interests_spec(), SAMPLES_OF_USERS, config, users=400, seed=1)
    assert [window.name for window in windows] == [f"2023-11-{day}" for day in range(16, 21)]  # whole ones
    assert windows[0].until == "2023-11-17T00:00:00+00:00"
    assert {feature.name: feature.pooling_factor for feature in spec.sparse} == {"segment": 1, "item": 8, "category": 8}
    found = [window.best_auc() for window in windows if window.best_auc is not None]
    assert len(found) == 5
    assert all(0.55 < auc < 0.95 for auc in found)
    since = replace(config, since="2023-11-18")
    later = sequence_windows("synthetic", spec, SAMPLES_OF_USERS, since, users=400, seed=1)[1]
    assert begun(later) == begun(windows[2:])
    since = replace(config, since="monday")
    with pytest.raises(ValueError, match=r"must be the name of a window: got 'monday'; name one of \['2023-11-16"):
        sequence_windows("synthetic", spec, SAMPLES_OF_USERS, since, users=400, seed=1)
    longer = sequence_windows("synthetic", spec, SAMPLES_OF_USERS, SequenceWindowsConfig(days=7), users=400, seed=1)[1]
    assert begun(longer[:5]) == begun(windows)


SAMPLES_OF_USERS = SamplesConfig(history=6, candidates=2)


def test_samples_of_each_user_s_last_event_make_no_windows() -> None:
    with pytest.raises(ValueError, match=r"samples of windows must be held out by time: got 'last'; leave out"):
        sequence_windows("synthetic", SPEC, SamplesConfig(held_out="last"), SequenceWindowsConfig(), users=5, seed=0)
