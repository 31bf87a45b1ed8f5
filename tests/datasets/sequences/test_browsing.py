"""Users who browse shelves: the best ranking against plain matrices, and that users do what it expects."""

from __future__ import annotations

import numpy as np
import pytest

from dlrm_torchrec.datasets.sequences.browsing import GOES_ON, OF_SHELF, SHELVES, STAYS, Browsing
from dlrm_torchrec.datasets.sequences.config import SamplesConfig
from dlrm_torchrec.datasets.sequences.log import EventLog, history_of
from dlrm_torchrec.datasets.sequences.samples import Samples, find_samples
from dlrm_torchrec.datasets.synthetic.specs import browsing_spec
from dlrm_torchrec.datasets.synthetic.zipf import Zipf

ON_SHELF = 12
SPEC = browsing_spec(items=ON_SHELF * SHELVES)
K = 10


def last_samples(world: Browsing, log: EventLog) -> Samples:
    return find_samples(log, history_of(world.spec), SamplesConfig(held_out="last"), split="test")


def next_chances(items: list[int], popularity: np.ndarray) -> np.ndarray:
    """P(next item | items): (all items,), by a matrix of transitions and one of emissions that is scaled each time."""
    emissions = (1 - OF_SHELF) / SHELVES * np.outer(popularity, np.ones(SHELVES))
    emissions[np.arange(len(popularity)), np.arange(len(popularity)) % SHELVES] += OF_SHELF * popularity
    moves = STAYS * np.eye(SHELVES) + GOES_ON * np.roll(np.eye(SHELVES), 1, axis=1)
    moves += (1 - STAYS - GOES_ON) / SHELVES
    belief = np.full(SHELVES, 1 / SHELVES)
    for item in items:
        belief *= (emissions / emissions.sum(0))[item]
        belief = belief / belief.sum() @ moves
        emissions[item] = 0
    return np.asarray(emissions / emissions.sum(0) @ belief)


def test_the_best_ranking_is_that_of_plain_matrices_and_users_do_what_it_expects() -> None:
    world = Browsing(SPEC, users=4_000, seed=3)
    log = world.log()
    samples = last_samples(world, log)
    popularity = Zipf(ON_SHELF, 1.1).probabilities().repeat(SHELVES)
    (above, equal, others), (more_popular, as_popular, _) = (
        world.rankings(samples)[name] for name in ("teacher", "popularity")
    )
    expected, hits = [], []
    for sample in np.random.default_rng(0).permutation(len(samples))[:800]:
        first = log.starts[log.user_of[samples.moments[sample]]]
        before = log.events["item"][first : samples.moments[sample]].tolist()
        assert len(set(before)) == len(before) >= 19
        target = int(log.events["item"][samples.moments[sample]])
        chances = next_chances(before, popularity)
        ranked = np.delete(chances, [*before, target])
        assert others[sample] == len(ranked) == ON_SHELF * SHELVES - len(before) - 1
        least, most = ((ranked > chances[target] * (1 + rounding)).sum() for rounding in (1e-11, -1e-11))
        assert least <= above[sample] + equal[sample]
        assert above[sample] <= most
        assert more_popular[sample] == (np.delete(popularity, [*before, target]) > popularity[target]).sum()
        assert as_popular[sample] == (np.delete(popularity, [*before, target]) == popularity[target]).sum()
        expected.append(np.sort(chances)[-K:].sum())
        hits.append((ranked > chances[target]).sum() < K)
        assert chances.sum() == pytest.approx(1)
    assert 0.3 < np.mean(hits) < 0.95
    assert abs(np.mean(hits) - np.mean(expected)) < 4 * (np.var(hits) / len(hits)) ** 0.5


def test_users_have_the_sizes_of_movielens_and_follow_from_the_seed() -> None:
    worlds = [Browsing(browsing_spec(items=3_706), users=6_040, seed=seed).log() for seed in (0, 0, 1)]
    assert (worlds[0].events["item"] == worlds[1].events["item"]).all()
    assert not np.array_equal(worlds[0].starts, worlds[2].starts)
    counts = np.diff(worlds[0].starts)
    assert len(worlds[0]) == pytest.approx(1_000_209, rel=0.05)
    assert np.median(counts) == pytest.approx(96, rel=0.05)
    assert (counts.min(), counts.max()) == (20, 2_316)
    with pytest.raises(ValueError, match="items must fill 34 shelves evenly: got 500; use a multiple"):
        Browsing(browsing_spec(items=500), users=10, seed=0)
