"""Synthetic users whose interests change while they are watched, with a known best possible AUC.

A user is interested in one of ``INTERESTS`` things at a time, which nobody sees. An interest lasts ``LASTS_S`` seconds
on average, and then another one begins, any of them equally likely: a Markov chain in continuous time. Events come in
visits, which mostly are farther apart. Items are shown at random, whatever the interest is. Each category of items
belongs to one interest. The logit of a like is the sum of a quality of the item, an effect of the user's segment, and
a large number, which is positive if the item's category belongs to the user's interest, and negative if not.

So what a user will like depends on the latest likes and skips, and old ones tell nothing: a model that reads the order
and the times of events can find the interest of the moment, and one that pools them all cannot. No model can expect a
better ranking than the probability of a like given the history, which the forward algorithm computes exactly (L. R.
Rabiner, "A tutorial on hidden Markov models", Proceedings of the IEEE 77(2), 1989, section III.A).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from numba import float64, int64, uint8
from numpy.typing import NDArray

from dlrm_torchrec.compiled import compiled
from dlrm_torchrec.datasets.random import counter
from dlrm_torchrec.datasets.random.normal import normals
from dlrm_torchrec.datasets.sequences.collate import spans
from dlrm_torchrec.datasets.sequences.log import EventLog, Ids, Ints, history_of
from dlrm_torchrec.datasets.sequences.samples import Samples, labels_of
from dlrm_torchrec.datasets.sequences.stream import SequenceStream
from dlrm_torchrec.datasets.stream import Ranks
from dlrm_torchrec.datasets.synthetic.zipf import Zipf
from dlrm_torchrec.schema import DatasetSpec

Floats = NDArray[np.float64]

INTERESTS = 4
LASTS_S = 86_400
VISIT_EVENTS, VISIT_GAP_S, GAP_S = 16, 3 * 86_400, 60  # events of a visit, seconds to the next visit and event: means
LEAST_EVENTS, MOST_EVENTS, TAIL = 10, 400, 1.3  # of a user: a Pareto distribution with this exponent
BEGINS_S, STARTS_WITHIN_S = 1_700_000_000, 60 * 86_400  # when users begin
FITS, FITS_NOT, BIAS = 2.5, -1.25, -0.5  # parts of the logit
QUALITY, SEGMENT = 0.5, 0.5  # deviations of further parts
_SKIP, _LIKE = 1, 2  # ids of actions


@dataclass(frozen=True)
class Interests:
    """The users of a spec with the features item, category and segment; everything follows from ``seed``."""

    least_events: ClassVar[int] = LEAST_EVENTS
    most_events: ClassVar[int] = MOST_EVENTS
    visit_gap_s: ClassVar[int] = VISIT_GAP_S
    spec: DatasetSpec
    users: int
    seed: int

    def log(self) -> EventLog:
        """All events of all users."""
        user_keys = counter.words(self._key(0), np.arange(self.users))
        tail = (1 - counter.uniforms(counter.words(user_keys, 0))) ** (-1 / TAIL)
        counts = np.minimum(self.least_events * tail, self.most_events).astype(np.int64)
        starts = np.concatenate([[0], np.cumsum(counts)])
        keys = counter.words(user_keys.repeat(counts), 2 + spans(np.zeros_like(counts), counts))
        draws = [counter.uniforms(counter.words(keys, number)) for number in (0, 1, 2, 3, 5)]

        is_first = np.zeros(starts[-1], bool)
        is_first[starts[:-1]] = True
        means = np.where(draws[0] * VISIT_EVENTS < 1, self.visit_gap_s, GAP_S)
        gaps = (1 - means * np.log1p(-draws[1])).astype(np.int64)
        begins = BEGINS_S + (counter.uniforms(counter.words(user_keys, 1)) * STARTS_WITHIN_S).astype(np.int64)
        gaps[is_first] = 0
        times = np.cumsum(gaps)
        times += (begins - times[starts[:-1]]).repeat(counts)
        changes = is_first | (draws[2] >= np.exp(-gaps / LASTS_S))
        latest = np.maximum.accumulate(np.where(changes, np.arange(len(changes)), 0))
        interests = (draws[3] * INTERESTS).astype(np.int64)[latest]

        no_actions = np.zeros(len(times), np.uint8)
        shown = EventLog(starts, times, no_actions, self._events(keys), self._users())
        likes = draws[4] < self.chances(shown)[np.arange(len(shown)), interests]
        return replace(shown, actions=np.where(likes, _LIKE, _SKIP).astype(np.uint8))

    def _events(self, keys: counter.Words) -> dict[str, Ids]:
        """The ids of what is shown in each event, by column."""
        rows = self._rows()
        items = Zipf(rows["item"], 1.1).ids(counter.uniforms(counter.words(keys, 4)))
        return {"item": items.astype(np.int32), "category": (items % rows["category"]).astype(np.int32)}

    def _users(self) -> dict[str, Ids]:
        """What is known of each user, by column."""
        return {"segment": (np.arange(self.users) % self._rows()["segment"]).astype(np.int32)}

    def probabilities(self, samples: Samples, *, use_history: bool = True) -> Floats:
        """P(like) of every candidate, given the history of its sample if ``use_history``: (C,)."""
        log = samples.log
        which = np.arange(len(samples))
        events, lengths = samples.history(which)
        if not use_history:
            events, lengths = events[:0], np.zeros_like(lengths)
        found = np.empty(len(samples.candidates))
        _filter(
            events,
            np.concatenate([[0], np.cumsum(lengths)]),
            samples.candidates,
            samples.bounds,
            log.times,
            log.actions,
            self.chances(log),
            found,
        )
        return found

    def best_auc(self, samples: Samples, *, use_history: bool = True) -> float:
        """The AUC of ``probabilities``."""
        from torchmetrics.functional.classification import binary_auroc  # half a second, which no step needs

        labels = labels_of(samples.log.actions[samples.candidates], history_of(self.spec))
        found = torch.from_numpy(self.probabilities(samples, use_history=use_history))
        return binary_auroc(found, torch.from_numpy(labels).long(), validate_args=False).item()

    def chances(self, log: EventLog) -> Floats:
        """P(like) of every event under each interest: (E, INTERESTS)."""
        found: Floats = 1 / (1 + np.exp(-self._logits(log)))
        return found

    def _logits(self, log: EventLog) -> Floats:
        """The logits of likes of events under each interest: (E, INTERESTS)."""
        rows, items, segments = self._rows(), log.events["item"], log.users["segment"][log.user_of]
        belongs = log.events["category"][:, None] % INTERESTS == np.arange(INTERESTS)
        known = QUALITY * self._normals(1, rows["item"])[items] + SEGMENT * self._normals(2, rows["segment"])[segments]
        logits: Floats = np.where(belongs, FITS, FITS_NOT) + (BIAS + known)[:, None]
        return logits

    def _normals(self, purpose: int, count: int) -> Floats:
        words = counter.words(self._key(purpose), np.arange(-(-count // 4)))
        return normals(words).reshape(-1)[:count].astype(np.float64)

    def _key(self, purpose: int) -> counter.Words:
        return counter.words(counter.words(self.seed, 4), purpose)

    def _rows(self) -> dict[str, int]:
        return {feature.name: feature.rows for feature in self.spec.sparse}


class InterestStream(SequenceStream):
    """The samples of synthetic users."""

    def __init__(self, interests: Interests, samples: Samples, ranks: Ranks, **options: Any) -> None:
        super().__init__(interests.spec, samples, ranks, **options)
        self.interests = interests

    def best_auc(self) -> float:
        """The AUC of the chances that the histories of the samples leave; no model can expect a better one."""
        return self.interests.best_auc(self.samples)


@compiled(int64[::1], int64[::1], int64[::1], int64[::1], int64[::1], uint8[::1], float64[:, ::1], float64[::1])
def _filter(  # noqa: PLR0917  # numba's functions have no keywords
    events: Ints,
    ends: Ints,
    candidates: Ints,
    bounds: Ints,
    times: Ints,
    actions: NDArray[np.uint8],
    chances: Floats,
    found: Floats,
) -> None:
    """Fill ``found`` with the chance of each candidate under the belief that its history leaves."""
    interests = chances.shape[1]
    belief = np.empty(interests)
    for sample in range(len(bounds) - 1):
        belief[:] = 1 / interests
        last = -1
        for place in events[ends[sample] : ends[sample + 1]]:
            if last >= 0:
                lasts = np.exp(-(times[place] - times[last]) / LASTS_S)
                belief = lasts * belief + (1 - lasts) / interests
            belief = belief * (chances[place] if actions[place] == _LIKE else 1 - chances[place])
            belief /= belief.sum()
            last = place
        for number in range(bounds[sample], bounds[sample + 1]):
            place = candidates[number]
            lasts = np.exp(-(times[place] - times[last]) / LASTS_S) if last >= 0 else 0.0
            found[number] = ((lasts * belief + (1 - lasts) / interests) * chances[place]).sum()
