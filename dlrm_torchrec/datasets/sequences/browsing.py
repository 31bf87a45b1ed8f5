"""Synthetic users who browse shelves of items, with a known best possible ranking of the next item.

A user stands before one shelf at a time. Before each event, the user stays there (``STAYS``), goes to the next shelf
(``GOES_ON``), or to any shelf. The item is one of this shelf (``OF_SHELF``), or of any; those of a shelf have a Zipf
distribution. No item comes twice, as in MovieLens: an item that came before is drawn again.

So the next item depends on the last ones and their order. No model can rank better than by the probability of each item
given all events before it, which the forward algorithm computes exactly (L. R. Rabiner, "A tutorial on hidden Markov
models", Proceedings of the IEEE 77(2), 1989, section III.A).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import float64, int32, int64, uint64
from numpy.typing import NDArray

from dlrm_torchrec.compiled import compiled
from dlrm_torchrec.datasets.random import counter
from dlrm_torchrec.datasets.random.normal import normals
from dlrm_torchrec.datasets.sequences.log import EventLog, Ints, history_of
from dlrm_torchrec.datasets.sequences.next_items import NextItemStream
from dlrm_torchrec.datasets.sequences.samples import Samples
from dlrm_torchrec.datasets.stream import Ranks
from dlrm_torchrec.datasets.synthetic.zipf import Zipf
from dlrm_torchrec.schema import DatasetSpec

Floats = NDArray[np.float64]

SHELVES = 34  # MovieLens-1M has 3,706 = 34 x 109 items
STAYS, GOES_ON, OF_SHELF, EXPONENT = 0.8, 0.15, 0.9, 1.1
# Items of a user: log-normal, as in MovieLens-1M, where the median is 96, the mean 166, and the most 2,314 of 3,706.
LEAST_EVENTS, MEDIAN_SHARE, DEVIATION, MOST_SHARE = 20, 0.026, 1.044, 0.625
_BEGINS_S, _GAP_S = 1_700_000_000, 60


@dataclass(frozen=True)
class Browsing:
    """The users of a spec whose items are the feature of its history; everything follows from ``seed``."""

    spec: DatasetSpec
    users: int
    seed: int

    def __post_init__(self) -> None:
        if self.items % SHELVES:
            raise ValueError(f"items must fill {SHELVES} shelves evenly: got {self.items}; use a multiple")

    @property
    def items(self) -> int:
        """Their number."""
        return next(feature.rows for feature in self.spec.sparse if feature.name == history_of(self.spec).item)

    def log(self) -> EventLog:
        """All events of all users, a minute after another."""
        keys = counter.words(counter.derived_key(self.seed, 6), np.arange(self.users))
        shares = MEDIAN_SHARE * np.exp(DEVIATION * normals(keys)[::4].astype(np.float64))
        counts = np.clip(self.items * shares, LEAST_EVENTS, self.items * MOST_SHARE).astype(np.int64)
        starts = np.concatenate([[0], np.cumsum(counts)])
        items = np.empty(starts[-1], np.int32)
        _browse(keys, starts, self._popularity(), items)
        return EventLog(
            starts=starts,
            times=_BEGINS_S + _GAP_S * np.arange(len(items)),
            actions=np.ones(len(items), np.uint8),
            events={history_of(self.spec).item: items},
            users={},
        )

    def rankings(self, samples: Samples) -> dict[str, tuple[Ints, Ints, Ints]]:
        """For each sample, the items above its candidate, those equal to it, and all others that may come: (N,) each.

        ``teacher`` ranks by the probability given all earlier events, and ``popularity`` by the one without them. No
        item that came before may come.
        """
        log, found = samples.log, np.empty((2, 3, len(samples)), np.int64)
        starts = log.starts[log.user_of[samples.moments]]
        _rank(starts, samples.moments, log.events[history_of(self.spec).item], self._popularity(), found)
        return {"teacher": tuple(found[0]), "popularity": tuple(found[1])}

    def _popularity(self) -> Floats:
        """The probability of each item on its shelf, (items,); item i stands on shelf i mod ``SHELVES``."""
        return Zipf(self.items // SHELVES, EXPONENT).probabilities().repeat(SHELVES)


class BrowsingStream(NextItemStream):
    """The samples of synthetic users."""

    def __init__(self, browsing: Browsing, samples: Samples, ranks: Ranks, **options: Any) -> None:
        super().__init__(browsing.spec, samples, ranks, **options)
        self.browsing = browsing

    def rankings(self) -> Mapping[str, tuple[Ints, Ints, Ints]]:
        """Those of the samples."""
        return self.browsing.rankings(self.samples)


@compiled(uint64[::1], int64[::1], float64[::1], int32[::1])
def _browse(keys: counter.Words, starts: Ints, popularity: Floats, items: NDArray[np.int32]) -> None:
    """Fill ``items`` with those of all users."""
    on_shelf = len(popularity) // SHELVES
    upto = np.cumsum(popularity[::SHELVES])
    for user in range(len(keys)):
        key, drawn, shelf = keys[user], np.uint64(1), 0
        seen = np.zeros(len(popularity), np.bool_)
        for place in range(starts[user], starts[user + 1]):
            step = counter.uniform(key, drawn)
            drawn += np.uint64(1)
            if place == starts[user] or step >= STAYS + GOES_ON:
                shelf = counter.below(key, drawn, SHELVES)
            elif step >= STAYS:
                shelf = (shelf + 1) % SHELVES
            drawn += np.uint64(1)
            item = -1
            while item < 0 or seen[item]:
                own = counter.uniform(key, drawn) < OF_SHELF
                of = shelf if own else counter.below(key, drawn + np.uint64(1), SHELVES)
                rank = np.searchsorted(upto, counter.uniform(key, drawn + np.uint64(2)) * upto[-1], side="right")
                item = min(rank, on_shelf - 1) * SHELVES + of
                drawn += np.uint64(3)
            seen[item] = True
            items[place] = item


@compiled(int64[::1], int64[::1], int32[::1], float64[::1], int64[:, :, ::1])
def _rank(  # noqa: PLR0917  # numba's functions have no keywords
    starts: Ints, moments: Ints, items: NDArray[np.int32], popularity: Floats, found: Ints
) -> None:
    """Fill ``found`` (2, 3, N); see ``Browsing.rankings``."""
    anywhere = (1 - STAYS - GOES_ON) / SHELVES
    for sample in range(len(starts)):
        belief, left = np.full(SHELVES, 1 / SHELVES), np.ones(SHELVES)  # left: chance that a shelf gives a new item
        seen = np.zeros(len(popularity), np.bool_)
        for place in range(starts[sample], moments[sample] + 1):
            if place > starts[sample]:
                moved = STAYS * belief + anywhere
                moved[1:] += GOES_ON * belief[:-1]
                moved[0] += GOES_ON * belief[-1]
                belief = moved
            weights = belief / left
            if place == moments[sample]:
                break
            item = items[place]
            chances = np.full(SHELVES, (1 - OF_SHELF) / SHELVES * popularity[item])
            chances[item % SHELVES] += OF_SHELF * popularity[item]
            belief = weights * chances
            belief /= belief.sum()
            left -= chances
            seen[item] = True
        of_shelf = OF_SHELF * weights + (1 - OF_SHELF) / SHELVES * weights.sum()
        target = items[moments[sample]]
        best = popularity[target] * of_shelf[target % SHELVES]
        found[:, :, sample] = 0
        for item in range(len(popularity)):
            if seen[item] or item == target:
                continue
            chance = popularity[item] * of_shelf[item % SHELVES]
            found[0, 0, sample] += chance > best
            found[0, 1, sample] += chance == best
            found[1, 0, sample] += popularity[item] > popularity[target]
            found[1, 1, sample] += popularity[item] == popularity[target]
            found[:, 2, sample] += 1
