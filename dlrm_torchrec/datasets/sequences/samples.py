"""Samples: which events are candidates, which of them share a history, and which events that history has."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numba import int64, uint8
from numpy.typing import NDArray

from dlrm_torchrec.compiled import compiled
from dlrm_torchrec.datasets.sequences.config import SamplesConfig
from dlrm_torchrec.datasets.sequences.log import EventLog, Ints
from dlrm_torchrec.schema import History

LAST = {"train": 3, "val": 2, "test": 1}  # place of the candidate among a user's events, from the end
_EVERYTHING = 1 << 62


class Window(NamedTuple):
    """The times of the candidates of one split, in seconds: from ``first`` on, and before ``end``."""

    first: int
    end: int


@dataclass(frozen=True)
class Rule:
    """How a history is taken from the events before a sample's first candidate."""

    within: int  # events that are looked at, from the latest on
    pool_of: NDArray[np.int64]  # (1 + actions,): the pool of each action, -1 if histories do not have it
    room: NDArray[np.int64]  # (pools,): events of each pool at most, the latest ones

    @classmethod
    def of(cls, config: SamplesConfig, history: History) -> Rule:
        pool_of = np.zeros(1 + len(history.actions), np.int64)
        if config.pools:
            pool_of[:] = -1
            for pool, action in enumerate(config.pools):
                pool_of[1 + history.actions.index(action)] = pool
        pools = max(1, len(config.pools))
        return cls(config.within or _EVERYTHING, pool_of, np.full(pools, config.history // pools))


@dataclass(frozen=True)
class Samples:
    """N samples: the candidates of sample i are the events ``candidates[bounds[i]:bounds[i + 1]]`` of one user."""

    log: EventLog
    rule: Rule
    candidates: Ints  # (C,) places in the log, ascending
    bounds: Ints  # (N + 1,)

    def __len__(self) -> int:
        return len(self.bounds) - 1

    @property
    def moments(self) -> Ints:
        """The place of the first candidate of each sample, before which all of its history lies: (N,)."""
        return self.candidates[self.bounds[:-1]]

    def tokens(self) -> Ints:
        """Events of the history and candidates of each sample: (N,)."""
        log, rule = self.log, self.rule
        lengths = np.empty(len(self), np.int64)
        _count(self._firsts(self.moments), self.moments, log.actions, rule.within, rule.pool_of, rule.room, lengths)
        return lengths + np.diff(self.bounds)

    def history(self, which: Ints) -> tuple[Ints, Ints]:
        """The places of the events of the histories of some samples, one after the other, and the length of each."""
        log, rule, moments = self.log, self.rule, self.moments[which]
        firsts, lengths = self._firsts(moments), np.empty(len(which), np.int64)
        _count(firsts, moments, log.actions, rule.within, rule.pool_of, rule.room, lengths)
        places = np.empty(lengths.sum(), np.int64)
        _fill(firsts, moments, log.actions, rule.pool_of, rule.room, np.cumsum(lengths), places)
        return places, lengths

    def _firsts(self, moments: Ints) -> Ints:
        return self.log.starts[self.log.user_of[moments]]


def find_samples(
    log: EventLog, history: History, config: SamplesConfig, *, split: str, window: Window | None = None
) -> Samples:
    """The samples of a split, user after user.

    By time, the candidates are events within ``window`` that have an action of ``anchors`` and at least ``least``
    events of the same user before them; ``candidates`` of them in a row make one sample. Otherwise the candidate is the
    last event of each user in ``test``, the one before it in ``val``, and the third last one in ``train``; users with
    fewer than three events are left out.

    All events of a history come before all candidates, so it holds nothing that happens at a later time. Events of
    equal times keep the order of the file.
    """
    config.check(history.actions)
    places, users = np.arange(len(log)), log.user_of
    eligible = places - log.starts[users] >= config.least
    if config.held_out == "last":
        ends = log.starts[users + 1]
        eligible &= (ends - places == LAST[split]) & (ends - log.starts[users] >= max(LAST.values()))
    else:
        assert window is not None
        eligible &= (log.times >= window.first) & (log.times < window.end)
        if config.anchors:
            eligible &= np.isin(log.actions, _ids_of(config.anchors, history))
    candidates = places[eligible]
    if not len(candidates):
        raise ValueError(
            f"split {split!r} must have candidates: got none with at least {config.least} earlier events; lower "
            "samples.least, or prepare the data with other shares"
        )
    return together(log, Rule.of(config, history), candidates, most=config.candidates)


def of_new_items(samples: Samples, items: NDArray[np.int32]) -> Samples:
    """The samples, of one candidate each, whose candidate is an item that their history does not have.

    ``items`` (E,) are those of the events of the log.
    """
    places, lengths = samples.history(np.arange(len(samples)))
    owners, told = np.arange(len(samples)).repeat(lengths), items[samples.moments]
    again = np.zeros(len(samples), np.bool_)
    again[owners[items[places] == told[owners]]] = True
    return together(samples.log, samples.rule, samples.candidates[~again], most=1)


def together(log: EventLog, rule: Rule, candidates: Ints, *, most: int) -> Samples:
    """The samples whose candidates are these, in ascending order: at most so many of one user in a row."""
    users = log.user_of[candidates]
    number = np.arange(len(candidates)) - np.searchsorted(users, users)  # among the candidates of the user
    bounds = np.flatnonzero(number % most == 0)
    return Samples(log, rule, candidates, np.append(bounds, len(candidates)))


def labels_of(actions: NDArray[np.uint8], history: History) -> NDArray[np.float32]:
    """1 for each positive action, else 0."""
    return np.isin(actions, _ids_of(history.positive, history)).astype(np.float32)


def _ids_of(actions: Collection[str], history: History) -> list[int]:
    return [1 + history.actions.index(action) for action in actions]


@compiled(int64[::1], int64[::1], uint8[::1], int64, int64[::1], int64[::1], int64[::1])
def _count(  # noqa: PLR0917  # numba's functions have no keywords
    firsts: Ints, moments: Ints, actions: NDArray[np.uint8], within: int, pool_of: Ints, room: Ints, lengths: Ints
) -> None:
    """Fill ``lengths`` with those of histories, and move ``firsts`` to the first event that each may have."""
    for i in range(len(moments)):
        firsts[i] = max(firsts[i], moments[i] - within)
        left, open_, place = room.copy(), len(room), moments[i]
        while open_ and place > firsts[i]:
            place -= 1
            pool = pool_of[actions[place]]
            if pool >= 0 and left[pool]:
                left[pool] -= 1
                open_ -= left[pool] == 0
        firsts[i], lengths[i] = place, room.sum() - left.sum()


@compiled(int64[::1], int64[::1], uint8[::1], int64[::1], int64[::1], int64[::1], int64[::1])
def _fill(  # noqa: PLR0917  # numba's functions have no keywords
    firsts: Ints,
    moments: Ints,
    actions: NDArray[np.uint8],
    pool_of: Ints,
    room: Ints,
    ends: Ints,
    places: Ints,
) -> None:
    """Fill ``places`` with the events of histories, each from its end on backwards."""
    for i in range(len(moments)):
        left, target, place = room.copy(), ends[i], moments[i]
        while place > firsts[i]:
            place -= 1
            pool = pool_of[actions[place]]
            if pool >= 0 and left[pool]:
                left[pool] -= 1
                target -= 1
                places[target] = place
