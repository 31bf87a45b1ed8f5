"""Users with changing interests: the best AUC against a sum over all paths of interests, and who can reach it."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from dlrm_torchrec.datasets.sequences import synthetic
from dlrm_torchrec.datasets.sequences.config import SamplesConfig
from dlrm_torchrec.datasets.sequences.log import EventLog, history_of
from dlrm_torchrec.datasets.sequences.samples import Samples, Window, find_samples
from dlrm_torchrec.datasets.sequences.synthetic import INTERESTS, LASTS_S, Interests
from dlrm_torchrec.datasets.synthetic.specs import interests_spec
from dlrm_torchrec.schema import DatasetSpec

SPEC = interests_spec(items=128)


def samples_of(log: EventLog, spec: DatasetSpec = SPEC, **config: int) -> Samples:
    return find_samples(log, history_of(spec), SamplesConfig(**config), split="val", window=Window(0, 1 << 60))  # type: ignore[arg-type]  # whole numbers


def by_all_paths(log: EventLog, chances: np.ndarray, history: list[int], candidate: int) -> float:
    """P(like of the candidate | the history), summed over every path of interests, without a recursion."""
    places = [*history, candidate]
    joint = np.zeros(2)  # of the history with a skip and with a like of the candidate
    for path in product(range(chances.shape[1]), repeat=len(places)):
        weight = 1 / chances.shape[1]
        for before, after, now, then in zip(places, places[1:], path, path[1:], strict=False):
            lasts = np.exp(-(log.times[after] - log.times[before]) / LASTS_S)
            weight *= lasts * (now == then) + (1 - lasts) / chances.shape[1]
        for place, interest in zip(history, path, strict=False):
            weight *= chances[place, interest] if log.actions[place] == 2 else 1 - chances[place, interest]
        joint += weight * np.array([1 - chances[candidate, path[-1]], chances[candidate, path[-1]]])
    return float(joint[1] / joint.sum())


def test_probabilities_are_those_of_all_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "INTERESTS", 3)
    world = Interests(SPEC, users=12, seed=4)
    log = world.log()
    samples = samples_of(log, history=5, candidates=2, least=0)
    found = world.probabilities(samples)
    chances = world.chances(log)
    for sample in np.random.default_rng(0).permutation(len(samples))[:40]:
        history, _ = samples.history(np.array([sample]))
        for number in range(samples.bounds[sample], samples.bounds[sample + 1]):
            expected = by_all_paths(log, chances, history.tolist(), int(samples.candidates[number]))
            assert found[number] == pytest.approx(expected, rel=1e-9)


def test_probabilities_are_calibrated_and_the_history_tells_much() -> None:
    world = Interests(SPEC, users=4_000, seed=1)
    samples = samples_of(world.log(), history=64, candidates=4)
    likes = samples.log.actions[samples.candidates] == 2
    found = world.probabilities(samples)
    for low in np.arange(0, 1, 0.1):
        rows = (found >= low) & (found < low + 0.1)
        expected, count = found[rows].mean(), rows.sum()
        assert count > 300
        assert abs(likes[rows].mean() - expected) < 5 * np.sqrt(expected * (1 - expected) / count)
    assert world.best_auc(samples) > world.best_auc(samples, use_history=False) + 0.08


def test_a_shorter_history_and_an_older_one_tell_less() -> None:
    world = Interests(SPEC, users=2_000, seed=2)
    log = world.log()
    aucs = [world.best_auc(samples_of(log, history=length, candidates=4, least=20)) for length in (1, 4, 64)]
    assert aucs == sorted(aucs)


def test_events_follow_from_the_seed_and_interests_last() -> None:
    log, again, other = (Interests(SPEC, users=500, seed=seed).log() for seed in (7, 7, 8))
    assert (log.times == again.times).all()
    assert (log.actions == again.actions).all()
    assert (log.events["item"] == again.events["item"]).all()
    assert len(log) != len(other) or (log.times != other.times).any()
    for user in range(log.num_users):
        assert (np.diff(log.times[log.starts[user] : log.starts[user + 1]]) >= 1).all()
    assert np.diff(log.starts).min() == 10
    assert np.median(np.diff(log.starts)) < np.diff(log.starts).mean() / 1.5  # a few users have most events
    assert INTERESTS > 1
