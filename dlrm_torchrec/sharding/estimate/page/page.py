"""Estimates as a web page: memory and time of every rank, the ranks of every table, and the ways considered."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dlrm_torchrec.pages.quantities import Quantity, size, speed, time
from dlrm_torchrec.pages.render import render
from dlrm_torchrec.sharding.estimate.estimate import Estimate
from dlrm_torchrec.sharding.estimate.page.ranks import (
    MEMORIES,
    CriticalView,
    MemoryView,
    TimeView,
    critical_view,
    memories,
    memory_view,
    rank_memory,
    time_view,
)
from dlrm_torchrec.sharding.estimate.page.segments import (
    Segment,
    memory_names,
    memory_segments,
    part_name,
    time_segments,
)
from dlrm_torchrec.sharding.estimate.page.tables import PlacementView, placement_view

TEMPLATE = Path(__file__).with_name("plan.html")


def page(estimates: Sequence[Estimate], title: str) -> str:
    """One HTML document without other files or scripts: a comparison of the estimates, then a section for each."""
    topologies = [Topology(estimate) for estimate in estimates]
    longest = max(topology.slowest_ms for topology in topologies)
    return render(
        TEMPLATE,
        title=title,
        topologies=topologies,
        longest=longest,
        memory_names=memory_names(estimates),
        part_name=part_name,
    )


class Topology:
    """What the page shows of one estimate."""

    def __init__(self, estimate: Estimate) -> None:
        self.name, self.batch_size, self.num_ranks = estimate.topology, estimate.batch_size, estimate.world_size
        self.num_tables = len(estimate.tables)
        self.all_bytes = size(sum(sum(estimate.rank_bytes(each)) for each in MEMORIES))

        # the memory that holds the tables, and its fullest rank
        memory = memories(estimate)[0]
        used = estimate.rank_bytes(memory)
        self.memory, self.fullest = MEMORIES[memory], used.index(max(used))
        held = rank_memory(estimate, memory)[self.fullest]
        self.capacity = sum(held.values())
        self.held: list[Segment] = memory_segments(held)
        self.used: Quantity = size(max(used))
        self.usable: Quantity = size(max(used) + held["free"])

        # the rank that the others wait for
        self.slowest = estimate.critical_rank()
        parts = estimate.rank_milliseconds()[self.slowest]
        self.slowest_ms = sum(parts.values())
        self.step: Quantity = time(self.slowest_ms)
        self.step_parts: list[Segment] = time_segments(parts)
        self.speed: Quantity = speed(1e3 * self.batch_size * self.num_ranks / self.slowest_ms)

        self.memories: list[MemoryView] = [memory_view(estimate, each) for each in memories(estimate)]
        self.time: TimeView = time_view(estimate)
        self.critical: CriticalView = critical_view(estimate)
        self.placement: PlacementView = placement_view(estimate)
