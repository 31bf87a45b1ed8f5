"""The map of a managed table from ids to rows.

TorchRec's ``MCHManagedCollisionModule`` decides alike, and a test compares them. It is not used itself: it forgets the
sightings of an interval when a run is resumed, its ids cannot be shared by more ranks than before, and a table of it
cannot be on one rank alone.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from dlrm_torchrec.embeddings.managed.buckets import EMPTY, bucket_of, dealt
from dlrm_torchrec.embeddings.managed.places import Places
from dlrm_torchrec.embeddings.managed.policies import replacements
from dlrm_torchrec.embeddings.managed.table_configs import ManagedEmbeddingBagConfig
from dlrm_torchrec.embeddings.managed.waiting_room import Waiting, WaitingRoom

TALLIES = ("lookups", "without_row", "admitted", "evicted", "returned")  # since they were last reported


class Admitted(NamedTuple):
    """Ids (n,) that just got the rows (n,)."""

    rows: torch.Tensor
    ids: torch.Tensor


class IdMap(nn.Module):
    """The map of the buckets ``first_bucket``, ... of a table, with what decides which ids get rows.

    All buffers have the same number of entries for each bucket, so ranks can share a map as they share rows:

    - ``ids``: the id of each row, or EMPTY, as that of the last row of a bucket always is;
    - ``last_seen``: the step at which the id of a row was last seen;
    - ``counts``: how often it was seen since it has the row, if the policy asks for that;
    - ``evicted``: at the place of an id that lost its row, eight bits of it, until another such id takes the place;
    - ``waiting_ids``, ``waiting_counts``, ``waiting_last_seen``: see ``WaitingRoom``;
    - ``clock``: the step, the same for each bucket;
    - ``tallies``: what was counted since the last report, in the first bucket of each rank.
    """

    ids: torch.Tensor
    last_seen: torch.Tensor
    counts: torch.Tensor
    evicted: torch.Tensor
    waiting_ids: torch.Tensor
    waiting_counts: torch.Tensor
    waiting_last_seen: torch.Tensor
    clock: torch.Tensor
    tallies: torch.Tensor

    def __init__(
        self,
        config: ManagedEmbeddingBagConfig,
        device: torch.device | None = None,
        *,
        first_bucket: int = 0,
        buckets: int | None = None,
    ) -> None:
        super().__init__()
        self.config, self.first_bucket = config, first_bucket
        self._counts_sightings = config.rules.policy != "lru"
        self.buckets = config.buckets if buckets is None else buckets
        self.rows_per_bucket = config.num_embeddings // config.buckets
        self.rows = self.buckets * self.rows_per_bucket
        waiting = self.buckets * config.places
        for name, shape, dtype in (
            ("ids", (self.rows,), torch.int64),
            ("last_seen", (self.rows,), torch.int32),
            ("counts", (self.rows,), torch.int32),
            ("evicted", (self.rows,), torch.uint8),
            ("waiting_ids", (waiting,), torch.int64),
            ("waiting_counts", (waiting,), torch.int32),
            ("waiting_last_seen", (waiting,), torch.int32),
            ("clock", (self.buckets,), torch.int64),
            ("tallies", (self.buckets, len(TALLIES)), torch.int64),
        ):
            if name != "counts" or self._counts_sightings:
                empty = EMPTY if dtype == torch.int64 and name.endswith("ids") else 0
                self.register_buffer(name, torch.full(shape, empty, dtype=dtype, device=device))
        self._places: Places | None = None  # of the ids, unless someone may have changed them
        # ids without a row, to be counted in the waiting room, and on a GPU EMPTY in place of the others
        self._seen: list[tuple[torch.Tensor, int]] = []
        self._room_is_empty = False  # as far as we know
        self._now: int | None = None  # the clock, where the host knows it
        self.register_state_dict_pre_hook(_settle)  # type: ignore[no-untyped-call]  # untyped in torch

    def settle(self) -> None:
        """Make the buffers complete, and expect that they are overwritten, before someone gets them."""
        if self._seen:
            self._room().hold(self._waiting())
        self._seen, self._places, self._now, self._room_is_empty = [], None, None, False

    def find(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The row (n,) of each id (n,), counted from the map's first row, and whether the id has it for itself."""
        if self._places is None:
            self._places = Places(
                self.ids,
                rows_per_bucket=self.rows_per_bucket,
                buckets=self.config.buckets,
                first_bucket=self.first_bucket,
            )
        return self._places.find(ids)

    @torch.no_grad()
    def train_step(self, ids: torch.Tensor) -> tuple[torch.Tensor, Admitted | None]:
        """The row (n,) of each id (n,) of a training step, and who got a row before they were read."""
        now = self._now = (int(self.clock[0]) if self._now is None else self._now) + 1
        self.clock.fill_(now)
        rows, has_row = self.find(ids)
        # every id takes part, because a host waits for a GPU until it knows how many have a row
        sightings = has_row.to(torch.int32)
        self.last_seen.scatter_reduce_(0, rows, sightings * now, "amax")
        if self._counts_sightings:
            self.counts.index_add_(0, rows, sightings)
        self._tally(lookups=len(ids), without_row=(~has_row).sum())
        on_cpu = ids.device.type == "cpu"
        self._seen.append((ids[~has_row] if on_cpu else ids.masked_fill(has_row, EMPTY), now))
        if now % self.config.rules.update_every:
            return rows, None
        admitted = self._update(now)
        return self.find(ids)[0], admitted

    def occupied(self) -> int:
        """How many rows belong to an id."""
        return int((self.ids != EMPTY).sum())

    def _room(self) -> WaitingRoom:
        parts = (self.waiting_ids, self.waiting_counts, self.waiting_last_seen)
        return WaitingRoom(*(part.view(self.buckets, -1) for part in parts))

    def _waiting(self) -> Waiting:
        """The ids that were seen without a row since the last update."""
        return self._room().waiting(
            self._seen,
            buckets=self.config.buckets,
            first_bucket=self.first_bucket,
            is_empty=self._room_is_empty,
        )

    def _update(self, now: int) -> Admitted:
        """Forget old ids and give rows to those that wait."""
        changed = torch.zeros(self.buckets, dtype=torch.bool, device=self.ids.device)
        changed[self._forget(now) // self.rows_per_bucket] = True
        waiting = self._waiting()
        waiting = waiting.at(waiting.counts >= self.config.rules.admit_after)
        if not self._room_is_empty:
            self._room().clear()
        self._seen, self._room_is_empty = [], True
        rows, chosen = waiting.buckets[:0], waiting.buckets[:0]
        if len(waiting.ids):
            last_seen = self.last_seen.view(self.buckets, -1)
            counts = self.counts.view(self.buckets, -1) if self._counts_sightings else last_seen
            rows, chosen = replacements(self.config.rules.policy, last_seen, counts, waiting, now=now)
        self._evict(rows)
        ids = waiting.ids[chosen]
        self.ids[rows], self.last_seen[rows] = ids, waiting.last_seen[chosen]
        if self._counts_sightings:
            self.counts[rows] = waiting.counts[chosen]
        changed[rows // self.rows_per_bucket] = True
        if self._places is not None:
            self._places.update(changed)
        place, bits = self._traces(ids)
        self._tally(admitted=len(ids), returned=(self.evicted[place] == bits).sum())
        return Admitted(rows, ids)

    def _forget(self, now: int) -> torch.Tensor:
        """The rows that were freed."""
        rows = self.ids.new_empty(0)
        if self.config.rules.max_age:
            rows = ((self.ids != EMPTY) & (self.last_seen < now - self.config.rules.max_age)).nonzero().view(-1)
            self._evict(rows)
            self.ids[rows], self.last_seen[rows] = EMPTY, 0
            if self._counts_sightings:
                self.counts[rows] = 0
        return rows

    def _evict(self, rows: torch.Tensor) -> None:
        """Keep traces of the ids of ``rows``, so that their return is noticed."""
        ids = self.ids[rows]
        ids = ids[ids != EMPTY]
        place, bits = self._traces(ids)
        self.evicted[place] = 0
        self.evicted.scatter_reduce_(0, place, bits, "amax")  # of ids in one place, the same on any number of ranks
        self._tally(evicted=len(ids))

    def _traces(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The place (n,) of each id's trace among the rows of its bucket, and the trace itself, uint8 and not 0."""
        bucket = bucket_of(ids, self.config.buckets) - self.first_bucket
        numbers = dealt(dealt(ids))
        place = bucket * self.rows_per_bucket + (numbers >> 8) % self.rows_per_bucket
        return place, (numbers % 255 + 1).to(torch.uint8)

    def _tally(self, **counts: int | torch.Tensor) -> None:
        for name, count in counts.items():
            self.tallies[0, TALLIES.index(name)] += count


def _settle(ids_to_rows: IdMap, *_: object) -> None:
    ids_to_rows.settle()
