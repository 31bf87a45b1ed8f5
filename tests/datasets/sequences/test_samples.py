"""Samples against a plain loop over the events of random logs."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from dlrm_torchrec.datasets.sequences.config import SamplesConfig
from dlrm_torchrec.datasets.sequences.samples import LAST, Window, find_samples
from tests.datasets.sequences.logs import HISTORY, Sample, naive_samples, random_log

CONFIGS = [
    SamplesConfig(),
    SamplesConfig(history=5, candidates=3, least=0),
    SamplesConfig(history=7, candidates=4, least=2, within=9, anchors=("listen", "skip")),
    SamplesConfig(history=6, least=6, within=12, pools=("listen", "like"), anchors=("listen",)),
    SamplesConfig(history=9, candidates=2, pools=("listen", "like", "skip")),
    SamplesConfig(history=4, held_out="last"),
]


@pytest.mark.parametrize("config", CONFIGS, ids=range(len(CONFIGS)))
def test_samples_are_those_of_a_plain_loop(config: SamplesConfig) -> None:
    for seed in range(20):
        log = random_log(seed)
        middle = 150 + 10 * seed
        for split, window in (("train", Window(0, middle)), ("val", Window(middle, 1 << 60))):
            samples = find_samples(log, HISTORY, config, split=split, window=window)
            places, lengths = samples.history(np.arange(len(samples)))
            histories = np.split(places, np.cumsum(lengths)[:-1])
            asked = [samples.candidates[first:end] for first, end in pairwise(samples.bounds)]
            found = [
                Sample(tuple(before.tolist()), tuple(after.tolist()))
                for before, after in zip(histories, asked, strict=True)
            ]
            assert found == naive_samples(log, config, split, window)
            assert samples.tokens().tolist() == [len(each.history) + len(each.candidates) for each in found]


def test_no_history_holds_anything_of_the_future() -> None:
    for seed in range(20):
        log = random_log(seed)
        config = SamplesConfig(history=8, candidates=3)
        samples = find_samples(log, HISTORY, config, split="val", window=Window(200, 1 << 60))
        for i in range(len(samples)):
            before, _ = samples.history(np.array([i]))
            candidates = samples.candidates[samples.bounds[i] : samples.bounds[i + 1]]
            assert before.max() < candidates.min()
            assert log.times[before].max() <= log.times[candidates].min()
            assert len({*log.user_of[before], *log.user_of[candidates]}) == 1


def test_windows_part_the_candidates_of_all_times() -> None:
    log, config = random_log(3), SamplesConfig(candidates=2, least=0)
    windows = {"train": Window(0, 120), "val": Window(120, 300), "test": Window(300, 1 << 60)}
    found = [find_samples(log, HISTORY, config, split=name, window=window) for name, window in windows.items()]
    assert sorted(np.concatenate([each.candidates for each in found]).tolist()) == list(range(len(log)))


def test_the_last_events_are_held_out_one_by_one() -> None:
    log = random_log(4)
    config = SamplesConfig(held_out="last")
    found = {split: find_samples(log, HISTORY, config, split=split) for split in LAST}
    users = {split: set(log.user_of[samples.candidates].tolist()) for split, samples in found.items()}
    enough = {user for user, count in enumerate(np.diff(log.starts)) if count >= 3}
    assert users["val"] == users["test"] == enough
    assert users["train"] == {user for user in enough if log.starts[user + 1] - log.starts[user] > 3}  # least is 1


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"history": 2, "pools": ("listen", "like", "skip")}, "history of samples must be at least 3: got 2; raise it"),
        ({"candidates": 0}, "candidates of samples must be at least 1: got 0"),
        ({"held_out": "last", "candidates": 2}, "must have one candidate of any action: got 2 candidates"),
    ],
)
def test_unfit_configs_are_refused(config: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SamplesConfig(**config)  # type: ignore[arg-type]  # as a command line gives them


def test_samples_need_candidates_and_known_actions() -> None:
    log = random_log(0)
    with pytest.raises(ValueError, match="split 'val' must have candidates: got none with at least 1 earlier events"):
        find_samples(log, HISTORY, SamplesConfig(), split="val", window=Window(1000, 2000))
    with pytest.raises(ValueError, match="pools and anchors must be actions of the data: got 'buy'"):
        find_samples(log, HISTORY, SamplesConfig(anchors=("buy",)), split="val", window=Window(0, 2000))
