"""TorchRec's greedy proposals, in larger strides where there are many tables or ranks."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from itertools import islice

from torchrec.distributed.planner.types import Enumerator, Proposer, ShardingOption, Topology

WORK = 500_000  # shards of all proposals; a larger search space is passed in larger strides


class Greedy(Proposer):
    """At first the fastest way for each table; then, again and again, the largest table moves to its next fastest way.

    The proposals are those of TorchRec's ``GreedyProposer``, which looks through all shards of all ways for each of
    them. With ``use_depth``, a way is as fast as its slowest shard; otherwise its shards' times are added up.
    """

    def __init__(self, *, use_depth: bool) -> None:
        self._score = max if use_depth else sum
        self._proposals: Iterator[list[ShardingOption]] = iter(())
        self._proposal: list[ShardingOption] | None = None

    def load(self, search_space: list[ShardingOption], enumerator: Enumerator | None = None) -> None:  # noqa: ARG002  # TorchRec's
        """Store the ways to shard each table."""
        by_table: dict[str, list[ShardingOption]] = {}
        for option in search_space:
            by_table.setdefault(option.fqn, []).append(option)
        ways = [sorted(each, key=self._time) for each in by_table.values()]
        moves = sum(len(each) - 1 for each in ways)
        shards = sum(sum(len(way.shards) for way in each) / len(each) for each in ways)
        self._proposals = islice(_moves(ways), 0, None, max(1, round(moves * shards / WORK)))
        self._proposal = next(self._proposals, None)

    def _time(self, option: ShardingOption) -> float:
        return float(self._score(shard.perf.total for shard in option.shards))

    def propose(self) -> list[ShardingOption] | None:
        """One way for every table; None when no table has another way left."""
        return self._proposal

    def feedback(
        self,
        partitionable: bool,  # noqa: ARG002, FBT001  # TorchRec's
        plan: list[ShardingOption] | None = None,  # noqa: ARG002
        perf_rating: float | None = None,  # noqa: ARG002
        storage_constraint: Topology | None = None,  # noqa: ARG002
    ) -> None:
        """Go on to the next proposal, whatever became of the last one."""
        self._proposal = next(self._proposals, None)


def _moves(ways: list[list[ShardingOption]]) -> Iterator[list[ShardingOption]]:
    """The proposals of all moves of one table; of equally large tables, the first one moves first."""
    chosen = [0] * len(ways)
    largest = [(_smallness(each[0]), table) for table, each in enumerate(ways) if len(each) > 1]
    heapq.heapify(largest)
    yield [each[0] for each in ways]
    while largest:
        _, table = heapq.heappop(largest)
        chosen[table] += 1
        if chosen[table] + 1 < len(ways[table]):
            heapq.heappush(largest, (_smallness(ways[table][chosen[table]]), table))
        yield [each[number] for each, number in zip(ways, chosen, strict=True)]


def _smallness(option: ShardingOption) -> tuple[int, ...]:
    """Bytes on the fullest rank and on all ranks, of each memory, negated: the largest table comes first."""
    hbm, ddr = ([getattr(shard.storage, memory) for shard in option.shards] for memory in ("hbm", "ddr"))
    return -max(hbm), -sum(hbm), -max(ddr), -sum(ddr)
