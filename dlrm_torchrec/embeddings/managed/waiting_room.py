"""The ids that were seen without a row in an interval, with how often and when; a fixed number in each bucket."""

from __future__ import annotations

from itertools import starmap
from typing import NamedTuple

import torch

from dlrm_torchrec.embeddings.managed.buckets import EMPTY, bucket_of


class Waiting(NamedTuple):
    """Ids (n,) that wait for a row, one bucket after another, and in a bucket in order of arrival."""

    buckets: torch.Tensor  # counted from the first one here
    ids: torch.Tensor
    counts: torch.Tensor  # sightings
    last_seen: torch.Tensor  # steps

    def at(self, places: torch.Tensor) -> Waiting:
        """Those at these places, or in a mask."""
        return Waiting(*(part[places] for part in self))

    def ranks(self) -> torch.Tensor:
        """How many ids of its bucket come before each id."""
        if not len(self.ids):
            return self.buckets
        of_bucket = torch.bincount(self.buckets)
        before = of_bucket.cumsum(0) - of_bucket
        return torch.arange(len(self.ids), device=self.ids.device) - before[self.buckets]

    def by_count(self) -> torch.Tensor:
        """The places of ids, the most frequent of a bucket first; of equal ones the one that came first."""
        order = torch.argsort(self.counts, descending=True, stable=True)
        return order[torch.argsort(self.buckets[order], stable=True)]


class WaitingRoom(NamedTuple):
    """Ids (buckets, places), EMPTY from the first free place of a bucket on, with their sightings."""

    ids: torch.Tensor  # int64
    counts: torch.Tensor  # int32
    last_seen: torch.Tensor  # int32

    def waiting(
        self, sightings: list[tuple[torch.Tensor, int]], *, buckets: int, first_bucket: int, is_empty: bool
    ) -> Waiting:
        """The ids of the room and those that were seen since then; ``sightings`` are in the order of steps.

        Who comes first gets a place, of one step the lower id. Once its bucket is full, an id is not counted. It makes
        no difference whether sightings go through the room step by step or come together.

        Args:
            sightings: ids (n,) with the step at which they were seen; EMPTY is none
            buckets: of the whole table
            first_bucket: the first bucket of this room
            is_empty: whether nobody needs to look into the room
        """
        places = self.ids.size(1)
        held = (self.ids[:0] if is_empty else self.ids).flatten().ne(EMPTY).nonzero().view(-1)
        ids = torch.cat([self.ids.view(-1)[held], *(seen for seen, _ in sightings)])
        steps = torch.cat([self.last_seen.view(-1)[held], *starmap(_steps, sightings)])
        # those of the room come first, in the order of their places
        arrival = torch.cat([(held % places - places).to(torch.int32), steps[len(held) :]])
        times = torch.ones_like(steps)
        times[: len(held)] = self.counts.view(-1)[held]
        ids, inverse = torch.unique(ids, return_inverse=True)
        nothing = torch.zeros_like(ids, dtype=torch.int32)
        arrival = nothing.scatter_reduce(0, inverse, arrival, "amin", include_self=False)
        last_seen = nothing.scatter_reduce(0, inverse, steps, "amax", include_self=False)
        counts = nothing.scatter_add(0, inverse, times)
        found = Waiting(bucket_of(ids, buckets) - first_bucket, ids, counts, last_seen)
        arrival, found = arrival[ids != EMPTY], found.at(ids != EMPTY)
        order = torch.argsort(arrival, stable=True)
        found = found.at(order[torch.argsort(found.buckets[order], stable=True)])
        return found.at(found.ranks() < places)

    def hold(self, waiting: Waiting) -> None:
        """Let these, and only these, wait in the room."""
        self.clear()
        place = (waiting.buckets, waiting.ranks())
        self.ids[place], self.counts[place], self.last_seen[place] = waiting[1:]

    def clear(self) -> None:
        """Empty all places."""
        self.ids.fill_(EMPTY)
        self.counts.zero_()
        self.last_seen.zero_()


def _steps(ids: torch.Tensor, step: int) -> torch.Tensor:
    return torch.full_like(ids, step, dtype=torch.int32)
