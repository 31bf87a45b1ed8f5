"""What a managed table does, with dictionaries and lists."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from dlrm_torchrec.embeddings.managed.table_configs import ManagedEmbeddingBagConfig

MASK = 2**63 - 1


def bucket_of(number: int, buckets: int) -> int:
    """The highest bits of a multiplicative hash of an id."""
    number = (number ^ number >> 32) * 0x1E3779B97F4A7C15 & MASK
    number = (number ^ number >> 32) * 0x3F58476D1CE4E5B9 & MASK
    number ^= number >> 32
    number ^= 0x255839FA1E126AF7
    return number * buckets >> 63


@dataclass
class Bucket:
    rows: list[int | None]  # the id of each row but the shared one
    waiting: dict[int, list[int]] = field(default_factory=dict)  # sightings and last step, in order of arrival


class Reference:
    def __init__(self, config: ManagedEmbeddingBagConfig) -> None:
        self.config, self.rules, self.now = config, config.rules, 0
        self.size = config.num_embeddings // config.buckets
        self.buckets = [Bucket([None] * (self.size - 1)) for _ in range(config.buckets)]
        self.last: dict[int, int] = {}  # of ids with a row
        self.count: dict[int, int] = {}
        self.evicted: list[int] = []  # in order

    def row(self, number: int) -> int:
        bucket = bucket_of(number, self.config.buckets)
        rows = self.buckets[bucket].rows
        return bucket * self.size + (rows.index(number) if number in rows else self.size - 1)

    def step(self, ids: Sequence[int]) -> list[int]:
        """Rows of the ids of a training step."""
        self.now += 1
        for number, sightings in sorted(Counter(ids).items()):
            bucket = self.buckets[bucket_of(number, self.config.buckets)]
            if number in bucket.rows:
                self.last[number], self.count[number] = self.now, self.count[number] + sightings
            elif number in bucket.waiting:
                bucket.waiting[number] = [bucket.waiting[number][0] + sightings, self.now]
            elif len(bucket.waiting) < self.config.places:
                bucket.waiting[number] = [sightings, self.now]
        if self.now % self.rules.update_every == 0:
            for bucket in self.buckets:
                self.update(bucket)
        return [self.row(number) for number in ids]

    def update(self, bucket: Bucket) -> None:
        for place, number in enumerate(bucket.rows):
            if number is not None and self.rules.max_age and self.last[number] < self.now - self.rules.max_age:
                self.leave(bucket, place)
        come = [(number, *seen) for number, seen in bucket.waiting.items() if seen[0] >= self.rules.admit_after]
        come.sort(key=lambda each: -each[1])
        bucket.waiting = {}
        everyone: list[tuple[float, int | None, int]] = [
            (self.score(self.count.get(held, 0), self.last.get(held, 0)), None, place)
            for place, held in enumerate(-1 if number is None else number for number in bucket.rows)
        ]
        everyone += [(self.score(*seen), number, -1) for number, *seen in come]
        everyone.sort(key=lambda each: -each[0])
        kept, left = everyone[: len(bucket.rows)], everyone[len(bucket.rows) :]
        chosen = [number for _, number, _ in kept if number is not None]
        freed = [place for _, number, place in reversed(left) if number is None]  # the first goes first
        seen_of = {number: seen for number, *seen in come}
        for number, place in zip(chosen, freed, strict=True):
            if bucket.rows[place] is not None:
                self.leave(bucket, place)
            bucket.rows[place] = number
            self.count[number], self.last[number] = seen_of[number]

    def score(self, count: int, last: int) -> float:
        distance = self.now - last + 1
        by_policy = {"lru": -distance, "lfu": count, "distance": float(np.float32(count) / np.float32(distance))}
        return by_policy[self.rules.policy]

    def leave(self, bucket: Bucket, place: int) -> None:
        number = bucket.rows[place]
        assert number is not None
        bucket.rows[place] = None
        del self.last[number], self.count[number]
        self.evicted.append(number)
