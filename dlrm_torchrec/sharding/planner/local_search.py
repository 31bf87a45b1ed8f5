"""Proposals for TorchRec's planner that begin where its own end: the best plan so far, with one table changed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from itertools import islice

from torchrec.distributed.planner.proposers import GreedyProposer, GridSearchProposer, UniformProposer
from torchrec.distributed.planner.types import Enumerator, Proposer, ShardingOption, Topology

TRIES = 200  # at most, from each plan


class LocalSearch(Proposer):
    """TorchRec's proposals, then the best plan with one table of its slowest rank sharded otherwise, until none gains.

    TorchRec's greedy proposals change a table for good, to its next fastest way alone; so the slowest rank may be left
    with a table that would be faster on all ranks.
    """

    def __init__(self) -> None:
        self._first: list[Proposer] = [
            GridSearchProposer(),
            GreedyProposer(),
            GreedyProposer(use_depth=False),
            UniformProposer(),
        ]
        self._ways: dict[str, list[ShardingOption]] = {}
        self._best = math.inf
        self._neighbours: Iterator[list[ShardingOption]] = iter(())  # of the best plan of the round before
        self._next: Iterator[list[ShardingOption]] = iter(())  # of the best plan so far

    def load(self, search_space: list[ShardingOption], enumerator: Enumerator | None = None) -> None:
        """Take the ways to shard each table."""
        for option in search_space:
            self._ways.setdefault(option.fqn, []).append(option)
        for proposer in self._first:
            proposer.load(search_space, enumerator)

    def propose(self) -> list[ShardingOption] | None:
        """A way to shard every table; None when there is nothing left to try."""
        while self._first:
            proposal: list[ShardingOption] | None = self._first[0].propose()
            if proposal:
                return proposal
            self._first.pop(0)
        proposal = next(self._neighbours, None)
        if proposal is None:
            self._neighbours, self._next = self._next, iter(())
            proposal = next(self._neighbours, None)
        return proposal

    def feedback(
        self,
        partitionable: bool,
        plan: list[ShardingOption] | None = None,
        perf_rating: float | None = None,
        storage_constraint: Topology | None = None,
    ) -> None:
        """Hear what became of the last proposal: whether it fits, with ranks, and milliseconds of the slowest."""
        if self._first:
            self._first[0].feedback(partitionable, plan, perf_rating, storage_constraint)
        if partitionable and plan and perf_rating is not None and perf_rating < self._best:
            self._best = perf_rating
            self._next = islice(self._change_one(list(plan), _on_slowest_rank(plan)), TRIES)

    def _change_one(self, plan: list[ShardingOption], places: list[int]) -> Iterator[list[ShardingOption]]:
        for place in places:
            for way in self._ways[plan[place].fqn]:
                if way is not plan[place]:
                    yield [*plan[:place], way, *plan[place + 1 :]]


def _on_slowest_rank(plan: list[ShardingOption]) -> list[int]:
    """Places in ``plan`` of the tables that its slowest rank has shards of, the longest first."""
    ranks: Counter[int] = Counter()
    for option in plan:
        ranks.update({rank: _milliseconds(option, rank) for rank in {shard.rank for shard in option.shards}})
    slowest = max(ranks, key=lambda rank: ranks[rank])
    times = {place: _milliseconds(option, slowest) for place, option in enumerate(plan)}
    return sorted((place for place, time in times.items() if time), key=lambda place: -times[place])


def _milliseconds(option: ShardingOption, rank: int) -> float:
    return float(sum(shard.perf.total for shard in option.shards if shard.rank == rank))
