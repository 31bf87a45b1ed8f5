"""More proposals for TorchRec's planner after its own: the best plan so far with one table changed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from itertools import islice

from torchrec.distributed.planner.proposers import GridSearchProposer, UniformProposer
from torchrec.distributed.planner.types import Enumerator, Proposer, ShardingOption, Topology

from dlrm_torchrec.sharding.planner.greedy import Greedy

TRIES = 200  # the most changes that are tried for each plan
WORK = 1_000_000  # the most shards of all changes together, so that the search ends soon for any number of ranks


class LocalSearch(Proposer):
    """TorchRec's proposals, then changes of the best plan: one table of its slowest rank is sharded in another way.

    The search ends when no change is faster, or after much work. It is needed because TorchRec's greedy proposals move
    a table only to its next fastest way and never back, so the slowest rank may keep a table that would be faster when
    it is spread over all ranks.
    """

    def __init__(self) -> None:
        self._first: list[Proposer] = [
            GridSearchProposer(),
            Greedy(use_depth=True),
            Greedy(use_depth=False),
            UniformProposer(),
        ]
        self._ways: dict[str, list[ShardingOption]] = {}
        self._best = math.inf
        self._placed = 0  # shards of all changes that were tried
        self._neighbours: Iterator[list[ShardingOption]] = iter(())  # changes of the previous round's best plan
        self._next: Iterator[list[ShardingOption]] = iter(())  # changes of the best plan so far

    def load(self, search_space: list[ShardingOption], enumerator: Enumerator | None = None) -> None:
        """Store the ways to shard each table."""
        for option in search_space:
            self._ways.setdefault(option.fqn, []).append(option)
        for proposer in self._first:
            proposer.load(search_space, enumerator)

    def propose(self) -> list[ShardingOption] | None:
        """One way for every table; None when there is nothing left to try."""
        while self._first:
            proposal: list[ShardingOption] | None = self._first[0].propose()
            if proposal:
                return proposal
            self._first.pop(0)
        proposal = next(self._neighbours, None)
        if proposal is None:
            self._neighbours, self._next = self._next, iter(())
            proposal = next(self._neighbours, None)
        if proposal is None or self._placed > WORK:
            return None
        self._placed += sum(len(option.shards) for option in proposal)
        return proposal

    def feedback(
        self,
        partitionable: bool,  # noqa: FBT001  # TorchRec's
        plan: list[ShardingOption] | None = None,
        perf_rating: float | None = None,
        storage_constraint: Topology | None = None,
    ) -> None:
        """Note the result of the last proposal: whether it fits, its plan, and the milliseconds of its slowest rank."""
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
    """Positions in ``plan`` of the tables with shards on its slowest rank, the slowest table first."""
    ranks: Counter[int] = Counter()
    for option in plan:
        ranks.update({rank: _milliseconds(option, rank) for rank in {shard.rank for shard in option.shards}})
    slowest = max(ranks, key=lambda rank: ranks[rank])
    times = {place: _milliseconds(option, slowest) for place, option in enumerate(plan)}
    return sorted((place for place, time in times.items() if time), key=lambda place: -times[place])


def _milliseconds(option: ShardingOption, rank: int) -> float:
    return float(sum(shard.perf.total for shard in option.shards if shard.rank == rank))
