"""The ids that were seen without a row in an interval, with how often and when; a fixed number in each bucket."""

from __future__ import annotations

from itertools import starmap
from typing import NamedTuple

import torch

from dlrm_torchrec.embeddings.managed.buckets import EMPTY, bucket_of


class WaitingRoom(NamedTuple):
    """Ids (buckets, places), EMPTY from the first free place of a bucket on, with their sightings."""

    ids: torch.Tensor  # int64
    counts: torch.Tensor  # int32
    last_seen: torch.Tensor  # int32, steps

    def add(self, sightings: list[tuple[torch.Tensor, int]], *, buckets: int, first_bucket: int) -> None:
        """Count ids (n,) that were seen at a step; ``sightings`` are in the order of steps.

        Who comes first gets a place, of one step the lower id. Once its bucket is full, an id is not counted. The
        result is the same whether sightings are added step by step or together.

        Args:
            sightings: ids with their step
            buckets: of the whole table
            first_bucket: the first bucket of this room
        """
        if not sightings:
            return
        ids = torch.cat([of_step for of_step, _ in sightings])
        steps = torch.cat(list(starmap(torch.full_like, sightings))).to(torch.int32)
        ids, inverse, counts = torch.unique(ids, return_inverse=True, return_counts=True)
        first, last = (
            torch.zeros_like(ids, dtype=torch.int32).scatter_reduce(0, inverse, steps, reduce, include_self=False)
            for reduce in ("amin", "amax")
        )
        new = torch.ones_like(ids, dtype=torch.bool)
        if len(ids):
            at = torch.searchsorted(ids, self.ids).clamp(max=len(ids) - 1)
            known = ids[at] == self.ids
            self.counts[known] += counts[at[known]].to(torch.int32)
            self.last_seen[known] = last[at[known]]
            new[at[known]] = False

        bucket = bucket_of(ids, buckets) - first_bucket
        order = torch.argsort(first, stable=True)
        order = order[torch.argsort(bucket[order], stable=True)]
        order = order[new[order]]
        bucket = bucket[order]
        of_bucket = torch.bincount(bucket, minlength=len(self.ids))
        before = torch.arange(len(order), device=order.device) - (of_bucket.cumsum(0) - of_bucket)[bucket]
        place = before + (self.ids != EMPTY).sum(1)[bucket]
        fits = place < self.ids.size(1)
        at_place, come = (bucket[fits], place[fits]), order[fits]
        self.ids[at_place], self.counts[at_place] = ids[come], counts[come].to(torch.int32)
        self.last_seen[at_place] = last[come]

    def admissible(self, sightings: int) -> WaitingRoom:
        """The ids with at least so many ``sightings``, the most frequent first; the others' places are empty."""
        counts = torch.where((self.ids != EMPTY) & (self.counts >= sightings), self.counts, 0)
        counts, order = torch.sort(counts, dim=1, descending=True, stable=True)
        ids, last_seen = self.ids.gather(1, order), self.last_seen.gather(1, order)
        return WaitingRoom(ids, counts, torch.where(counts > 0, last_seen, 0))

    def clear(self) -> None:
        """Empty all places."""
        self.ids.fill_(EMPTY)
        self.counts.zero_()
        self.last_seen.zero_()
