"""The page's drawings of ranks: their memory, their time, and the slowest rank in detail."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape

from dlrm_torchrec.sharding.estimate.estimate import PARTS, Estimate
from dlrm_torchrec.sharding.estimate.page.draw import (
    FAMILIES,
    alike,
    bar,
    cells,
    columns,
    legend,
    part_name,
    ranks_text,
    scale,
    share,
    size,
    size_text,
    swatch,
    table,
    time,
    time_bar,
)

MEMORIES = {"hbm": "HBM", "ddr": "DDR"}
MEMORY = {
    "weights": "weights",
    "optimizer": "optimizer state",
    "buffers": "buffers",
    "free": "free",
    "reserved": "reserved",
}
SHOWN_GROUPS = 32  # groups of equal ranks; if there are more, the largest are shown and a click opens all
LARGEST_GROUPS = 16
SHOWN_TABLES = 8  # tables that are listed for the slowest rank


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
    ranks = [dict.fromkeys(MEMORY, 0) for _ in range(estimate.world_size)]
    for shard in (shard for each in estimate.tables for shard in each.shards):
        if on_device != (0 < shard.weight_bytes + shard.optimizer_bytes <= shard.ddr_bytes):
            ranks[shard.rank]["weights"] += shard.weight_bytes
            ranks[shard.rank]["optimizer"] += shard.optimizer_bytes
    for rank, (held, used) in enumerate(zip(ranks, estimate.rank_bytes(memory), strict=True)):
        held["buffers"] = used - held["weights"] - held["optimizer"]
        held["free"] = capacity[rank] - reserved[rank] - used
        held["reserved"] = reserved[rank]
    return ranks


def memory_bar(held: Mapping[str, int], whole: int) -> str:
    """A bar of the bytes that ``rank_memory`` returns for a rank."""
    return bar({kind: (MEMORY[kind], count, size_text(count)) for kind, count in held.items()}, whole)


def memory_section(estimate: Estimate, memory: str) -> str:
    """A bar and the numbers of every rank's bytes by kind; ranks with the same text share a row."""
    ranks, used, name = rank_memory(estimate, memory), estimate.rank_bytes(memory), MEMORIES[memory]
    whole = max(sum(held.values()) for held in ranks)

    def row(group: list[int]) -> str:
        held = ranks[group[0]]
        mark = "fullest" if used.index(max(used)) in group else ""
        return _row(group, mark, memory_bar(held, whole), [size(used[group[0]]), *map(size, held.values())])

    kinds = [kind.capitalize() for kind in MEMORY.values()]
    head = f"<tr>{columns('Rank')}{scale(size_text(whole))}{columns('Tables', *kinds)}</tr>"
    groups = alike([tuple(map(size_text, held.values())) for held in ranks])
    cached = (
        " and caches of tables in the host&rsquo;s memory" if memory == "hbm" and "ddr" in memories(estimate) else ""
    )
    return (
        f"<h3>{name} per rank</h3>{legend(MEMORY)}"
        + _chart(groups, row, amounts=used, head=head, caption=f"{name} of every rank")
        + f'<p class="note">Buffers hold the ids and rows of a step{cached}. '
        "Reserved memory is for everything that is not sharded, plus a margin.</p>"
    )


def time_section(estimate: Estimate) -> str:
    """A bar and the numbers of every rank's milliseconds by part; the rank that the others wait for is marked."""
    ranks, critical, families = estimate.rank_milliseconds(), estimate.critical_rank(), _timed_parts(estimate)
    parts = [part for family in families.values() for part in family]
    totals = [sum(rank.values()) for rank in ranks]

    def row(group: list[int]) -> str:
        rank = ranks[group[0]]
        numbers = [time(totals[group[0]]), *(time(rank[part]) for part in parts)]
        return _row(group, "slowest" if critical in group else "", time_bar(rank, totals[critical]), numbers)

    above = "".join(
        f'<th scope="colgroup" colspan="{len(members)}">{family.capitalize()}</th>'
        for family, members in families.items()
    )
    stages = [part_name(part).split()[0].capitalize() for part in parts]
    head = (
        f'<tr><th scope="col" rowspan="2">Rank</th>{scale(f"{totals[critical]:.3f} ms", " rowspan=2")}'
        f'<th scope="col" rowspan="2">Step</th>{above}</tr><tr>{columns(*stages)}</tr>'
    )
    groups = alike([tuple(f"{rank[part]:.3f}" for part in parts) for rank in ranks])
    return f"<h3>Time per rank</h3>{legend({part: part_name(part) for part in parts})}" + _chart(
        groups, row, amounts=totals, head=head, caption="Time of a step on every rank"
    )


def _timed_parts(estimate: Estimate) -> dict[str, list[str]]:
    """The parts of a step that take time on any rank, by family."""
    ranks = estimate.rank_milliseconds()
    timed = {
        family: [part for part in parts if any(rank[part] > 0 for rank in ranks)] for family, parts in FAMILIES.items()
    }
    return {family: parts for family, parts in timed.items() if parts}


def _row(group: list[int], mark: str, drawing: str, numbers: list[str]) -> str:
    marked = f' <strong class="mark">{mark}</strong>' if mark else ""
    name = f"<th scope=row>{ranks_text(group)}{marked}</th>"
    return f"<tr{' class=marked' if mark else ''}>{name}{cells([drawing, *numbers])}</tr>"


def _chart(
    groups: list[list[int]], row: Callable[[list[int]], str], *, amounts: Sequence[float], head: str, caption: str
) -> str:
    whole = table(head, "".join(map(row, groups)), caption, kind="chart", seen=False)
    if len(groups) <= SHOWN_GROUPS:
        return whole
    largest = sorted(groups, key=lambda group: -amounts[group[0]])[:LARGEST_GROUPS]
    return (
        table(
            head,
            "".join(map(row, largest)),
            f"{caption}: the largest {LARGEST_GROUPS} of {len(groups):,} groups of equal ranks",
            kind="chart",
        )
        + f'<details class="all"><summary>All {sum(map(len, groups)):,} ranks</summary>{whole}</details>'
    )


def critical_section(estimate: Estimate) -> str:
    """The slowest rank's time: compute and comms, each part, and the tables that take most of it."""
    rank, ranks = estimate.critical_rank(), estimate.rank_milliseconds()
    parts = ranks[rank]
    total = sum(parts.values())
    others = ranks.count(parts) - 1
    like_it = f" ({others:,} other{'s take' if others > 1 else ' takes'} as long)" if others else ""
    families, shares, rows = _timed_parts(estimate), [], ""
    for family, members in families.items():
        spent = sum(parts[part] for part in members)
        shares.append(f"<strong>{swatch(f'fwd_{family}')}{family} {time(spent)}</strong> ({share(spent, total)})")
        rows += "".join(
            f"<tr><th scope=row>{swatch(part)}{part_name(part).capitalize()}</th>"
            f"{cells([time(parts[part]), share(parts[part], total)])}</tr>"
            for part in members
        )
    return (
        f"<h3>Critical path</h3><p>All ranks wait for rank {rank}{like_it}: {time(total)} per step, "
        f'{" and ".join(shares)}.</p><div class="critical">{time_bar(parts, total)}</div><div class="columns">'
        + table(f"<tr>{columns('Part', 'Time', 'Share')}</tr>", rows, "By part", kind="parts")
        + _contributions(estimate, rank, total)
        + "</div>"
    )


def _contributions(estimate: Estimate, rank: int, total: float) -> str:
    """The tables that take longest on ``rank``, and the total time of all others."""
    tables: list[tuple[float, str, dict[str, float]]] = []
    for each in estimate.tables:
        parts = dict.fromkeys(PARTS, 0.0)
        for shard in each.shards:
            for part, milliseconds in shard.milliseconds.items() if shard.rank == rank else ():
                parts[part] += milliseconds
        if any(parts.values()):
            tables.append((sum(parts.values()), escape(each.name), parts))
    tables.sort(key=lambda each: -each[0])
    longest = tables[0][0]
    rows = "".join(
        f"<tr><th scope=row>{name}</th>{cells([time_bar(parts, longest), time(spent), share(spent, total)])}</tr>"
        for spent, name, parts in tables[:SHOWN_TABLES]
    )
    if rest := tables[SHOWN_TABLES:]:
        spent = sum(each[0] for each in rest)
        rows += f"<tr><th scope=row>{len(rest)} more</th>{cells(['', time(spent), share(spent, total)])}</tr>"
    head = f"<tr>{columns('Table')}{scale(f'{longest:.3f} ms')}{columns('Time', 'Share')}</tr>"
    return table(head, rows, f"Tables that take longest on rank {rank}", kind="chart")
