"""What the page shows of ranks: their memory, their time, and the slowest rank in detail."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dlrm_torchrec.pages.quantities import Quantity, share, size, time
from dlrm_torchrec.sharding.estimate.estimate import PARTS, Estimate
from dlrm_torchrec.sharding.estimate.page.segments import (
    FAMILIES,
    Segment,
    alike,
    memory_names,
    memory_segments,
    part_name,
    ranks_text,
    time_segments,
)

MEMORIES = {"hbm": "HBM", "ddr": "DDR"}
SHOWN_GROUPS = 32  # groups of equal ranks; if there are more, the largest are shown and a click opens all
LARGEST_GROUPS = 16
SHOWN_TABLES = 8  # tables that are listed for the slowest rank


@dataclass(frozen=True)
class Row:
    """A row of a chart: a name with a mark, a bar, and numbers."""

    name: str
    mark: str
    segments: list[Segment]
    numbers: list[Quantity]


@dataclass(frozen=True)
class RankChart:
    """The rows of all ranks; if they are many, also those of the largest groups of equal ranks, to show first."""

    rows: list[Row]
    largest: list[Row]
    num_ranks: int


def memories(estimate: Estimate) -> list[str]:
    """The memories to draw: the one that holds tables, then that of the hosts if tables are offloaded to it."""
    return [memory for memory in MEMORIES if memory == estimate.memory or any(estimate.rank_bytes(memory))]


def rank_memory(estimate: Estimate, memory: str) -> list[dict[str, int]]:
    """Bytes of every rank's ``memory`` by kind; they add up to its capacity.

    The weights and moments of a shard are in DDR if the shard uses enough DDR to hold them; its HBM is a cache then.
    """
    on_device = memory == "hbm"
    capacity = estimate.capacity(memory)
    reserved = estimate.hbm_reserved if on_device else estimate.ddr_reserved
    activations = estimate.activation_bytes if memory == estimate.memory else 0
    ranks = [dict.fromkeys(memory_names([estimate]), 0) for _ in range(estimate.world_size)]
    for shard in (shard for each in estimate.tables for shard in each.shards):
        if on_device != (0 < shard.weight_bytes + shard.optimizer_bytes <= shard.ddr_bytes):
            ranks[shard.rank]["weights"] += shard.weight_bytes
            ranks[shard.rank]["optimizer"] += shard.optimizer_bytes
    for rank, (held, used) in enumerate(zip(ranks, estimate.rank_bytes(memory), strict=True)):
        held["buffers"] = used - held["weights"] - held["optimizer"]
        if estimate.activation_bytes:
            held["activations"] = activations
        held["free"] = capacity[rank] - reserved[rank] - used
        held["reserved"] = reserved[rank] - activations
    return ranks


@dataclass(frozen=True)
class MemoryView:
    """The bytes of every rank by kind; ranks with the same text share a row."""

    name: str
    whole: Quantity
    chart: RankChart
    with_caches: bool  # whether buffers include caches of tables in the hosts' memory


def memory_view(estimate: Estimate, memory: str) -> MemoryView:
    ranks, used = rank_memory(estimate, memory), estimate.rank_bytes(memory)
    fullest = used.index(max(used))

    def row(group: list[int]) -> Row:
        held = ranks[group[0]]
        numbers = [size(used[group[0]]), *map(size, held.values())]
        return Row(ranks_text(group), "fullest" if fullest in group else "", memory_segments(held), numbers)

    groups = alike([tuple(str(size(count)) for count in held.values()) for held in ranks])
    return MemoryView(
        MEMORIES[memory],
        size(max(sum(held.values()) for held in ranks)),
        _chart(groups, row, used),
        with_caches=memory == "hbm" and "ddr" in memories(estimate),
    )


@dataclass(frozen=True)
class TimeView:
    """The milliseconds of every rank by part; the rank that the others wait for is marked."""

    families: dict[str, list[str]]  # the parts that take time on any rank, by family
    whole: Quantity
    chart: RankChart

    @property
    def parts(self) -> list[str]:
        return [part for family in self.families.values() for part in family]


def time_view(estimate: Estimate) -> TimeView:
    ranks, critical, families = estimate.rank_milliseconds(), estimate.critical_rank(), _timed_parts(estimate)
    parts = [part for family in families.values() for part in family]
    totals = [sum(rank.values()) for rank in ranks]

    def row(group: list[int]) -> Row:
        rank = ranks[group[0]]
        numbers = [time(totals[group[0]]), *(time(rank[part]) for part in parts)]
        return Row(ranks_text(group), "slowest" if critical in group else "", time_segments(rank), numbers)

    groups = alike([tuple(f"{rank[part]:.3f}" for part in parts) for rank in ranks])
    return TimeView(families, time(totals[critical]), _chart(groups, row, totals))


def _timed_parts(estimate: Estimate) -> dict[str, list[str]]:
    ranks = estimate.rank_milliseconds()
    timed = {
        family: [part for part in parts if any(rank[part] > 0 for rank in ranks)] for family, parts in FAMILIES.items()
    }
    return {family: parts for family, parts in timed.items() if parts}


def _chart(groups: list[list[int]], row: Callable[[list[int]], Row], amounts: Sequence[float]) -> RankChart:
    largest = sorted(groups, key=lambda group: -amounts[group[0]])[:LARGEST_GROUPS]
    few = len(groups) <= SHOWN_GROUPS
    return RankChart(list(map(row, groups)), [] if few else list(map(row, largest)), sum(map(len, groups)))


@dataclass(frozen=True)
class Contribution:
    """What a part, a family of parts, or a table takes of the slowest rank's time."""

    name: str
    kind: str
    segments: list[Segment]
    time: Quantity
    share: str


@dataclass(frozen=True)
class CriticalView:
    """The slowest rank's time: compute and comms, each part, and the tables that take most of it."""

    rank: int
    like_it: int  # other ranks that take as long
    total: Quantity
    segments: list[Segment]
    families: list[Contribution]
    parts: list[Contribution]
    tables: list[Contribution]
    longest: Quantity  # time of the first table


def critical_view(estimate: Estimate) -> CriticalView:
    rank, ranks = estimate.critical_rank(), estimate.rank_milliseconds()
    spent = ranks[rank]
    total = sum(spent.values())

    def contribution(name: str, kind: str, own: float, segments: list[Segment]) -> Contribution:
        return Contribution(name, kind, segments, time(own), share(own, total))

    timed = _timed_parts(estimate)
    tables = _table_milliseconds(estimate, rank)
    shown = [contribution(name, "", sum(parts.values()), time_segments(parts)) for name, parts in tables[:SHOWN_TABLES]]
    if rest := tables[SHOWN_TABLES:]:
        others = sum(sum(parts.values()) for _, parts in rest)
        shown.append(contribution(f"{len(rest)} more", "", others, []))
    return CriticalView(
        rank,
        ranks.count(spent) - 1,
        time(total),
        time_segments(spent),
        [
            contribution(family, f"fwd_{family}", sum(spent[part] for part in parts), [])
            for family, parts in timed.items()
        ],
        [contribution(part_name(part), part, spent[part], []) for parts in timed.values() for part in parts],
        shown,
        time(sum(tables[0][1].values())),
    )


def _table_milliseconds(estimate: Estimate, rank: int) -> list[tuple[str, dict[str, float]]]:
    """Names and milliseconds by part of the tables that take time on ``rank``, longest first."""
    found: list[tuple[str, dict[str, float]]] = []
    for each in estimate.tables:
        parts = dict.fromkeys(PARTS, 0.0)
        for shard in each.shards:
            for part, milliseconds in shard.milliseconds.items() if shard.rank == rank else ():
                parts[part] += milliseconds
        if any(parts.values()):
            found.append((each.name, parts))
    return sorted(found, key=lambda each: -sum(each[1].values()))
