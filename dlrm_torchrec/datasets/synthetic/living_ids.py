"""Ids that come and go: which ids of a feature live on a day, and what each of them does to the label."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dlrm_torchrec.datasets.random import counter
from dlrm_torchrec.datasets.random.normal import NORMALS
from dlrm_torchrec.datasets.synthetic.specs import Drift
from dlrm_torchrec.schema import SparseFeature

Ids = NDArray[np.int64]
Floats = NDArray[np.float64]

_16, _32, _48, _MASK = (np.uint64(each) for each in (16, 32, 48, 0xFFFF))


class LivingIds:
    """The ids of one feature by their popularity, the most popular first, on any day.

    There are ``living`` ids on each day. The popularity of an id is that of its place, and stays as it is while the id
    lives. From day to day, the id of a place gives way to a new one with the probability ``drift.replaced``: an id that
    is born at a place lives for 1 / ``replaced`` days, rounded up or down.

    A new id is one that has never lived before, if the ids are ``hash`` or ``managed``: then they are 64-bit hashes of
    values, folded into the range of ids. Plain ids and those of a vocabulary come from the range of the table, whose
    ids return after all of them have lived, with the effects that they had then.
    """

    def __init__(self, feature: SparseFeature, drift: Drift, key: np.uint64) -> None:
        first = 2 if feature.encoding == "vocab" else 0  # after missing and unseen values
        self._drift, self._first = drift, first
        self._folded = feature.ids if feature.encoding in ("hash", "managed") else 0
        most = feature.ids if self._folded else feature.rows - first
        self.living = min(max(1, round(drift.living * feature.rows)), most)
        self._generations = max(1, (feature.rows - first) // self.living)  # of plain ids, before they return
        place_key, self._value_key, self._effect_key, self._slope_key = counter.words(key, np.arange(4))
        self._phases = counter.uniforms(counter.words(place_key, np.arange(self.living)))

    def values(self, day: int) -> counter.Words:
        """What tells the ids that live on ``day`` from all others, whatever their encoding: (living,) 64 bits."""
        return counter.words(self._value_key, self._numbers(day))

    def ids(self, day: int) -> Ids:
        """The ids that live on ``day``: (living,), in the range of the feature; a hash is never 0, which is missing."""
        if self._folded:
            return (self.values(day) % np.uint64(self._folded - 1)).astype(np.int64) + 1
        return self._numbers(day) + self._first

    def effects(self, day: int) -> Floats:
        """Effects and slopes of the ids that live on ``day``: (2, living), each standard normal over ids.

        Each turns as a cos(w day) + b sin(w day), where a and b are normal and w is uniform between 0 and twice
        ``drift.speed``, all hashed from the value. So its variance is 1 on every day, and its correlation over t days
        is sin(2 speed t) / (2 speed t).
        """
        values = self.values(day)
        words = (_words(key, values) for key in (self._effect_key, self._slope_key))
        return np.stack([turned(bits, speed=self._drift.speed, day=day) for bits in words])

    def _numbers(self, day: int) -> Ids:
        """A number for each id that lives on ``day``, (living,): its place plus ``living`` for each one before it."""
        generation = np.floor(self._phases + day * self._drift.replaced).astype(np.int64)
        if not self._folded:
            generation %= self._generations
        return np.arange(self.living) + self.living * generation


def turned(bits: counter.Words, *, speed: float, day: int) -> Floats:
    """Numbers (n,) with the standard normal distribution, hashed from 64 ``bits`` each, as they are on ``day``."""
    turns = 2 * speed * day * (bits >> _48).astype(np.float64) * 2.0**-16
    start, later = NORMALS[bits & _MASK], NORMALS[(bits >> _16) & _MASK]
    found: Floats = start * np.cos(turns) + later * np.sin(turns)
    return found


def _words(key: np.uint64, values: counter.Words) -> counter.Words:
    """64 random bits for each of the values, which are any 64 bits."""
    return counter.words(values ^ key, 0)
