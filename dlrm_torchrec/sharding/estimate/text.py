"""Estimates as tables for a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from dlrm_torchrec.sharding.cluster.rank_ranges import ranges
from dlrm_torchrec.sharding.estimate.estimate import PARTS, Estimate
from dlrm_torchrec.table_names import shown_name

NEXT_BEST = 3
MOST_LINES = 16  # of ranks
MOST_CHARACTERS = 20  # of the numbers of ranks in one line


def describe_tables(estimate: Estimate) -> str:
    """The ranks of every table, as a table for a terminal: GB of all its shards, and ms of its slowest one.

    A last line says so if there are tables with copies, all of which count.
    """
    width = max(map(len, [*(shown_name(table.name) for table in estimate.tables), "table"]))
    lines = [
        f"{'table':<{width}}  {'rows':>11}  {'dim':>4}  {'sharding':<17}  {'kernel':<17}  {'GB, all':>7}  "
        f"{'ms, slowest':>11}  ranks"
    ]
    for table in estimate.tables:
        held = sum(shard.hbm_bytes + shard.ddr_bytes for shard in table.shards)
        milliseconds = max(sum(shard.milliseconds.values()) for shard in table.shards)
        lines.append(
            f"{shown_name(table.name):<{width}}  {table.rows:>11,}  {table.dim:>4}  {table.sharding_type:<17}  "
            f"{table.compute_kernel:<17}  {held / 1e9:>7.3f}  {milliseconds:>11.3f}  "
            f"{ranges([shard.rank for shard in table.shards])}"
        )
    if any(table.sharding_type == "data_parallel" and len(table.shards) > 1 for table in estimate.tables):
        lines.append("GB, all: shards with their buffers; of a data_parallel table, the copies on all ranks")
    return "\n".join(lines)


def describe_ranks(estimate: Estimate, *, all_ranks: bool = False) -> str:
    """Memory and estimated time of the ranks, as a table for a terminal; the one that the others wait for is marked.

    Equal ranks share a line. If there are more than 16 lines, only the slowest 16 are shown, unless ``all_ranks``. The
    columns of bytes are weights, moments, and buffers, which hold the ids, vectors and gradients of a batch on their
    way, and caches; then the sum, next to what a rank has. If the model counts its activations, they have a column,
    too, and are part of the sum; a last line says that the times do not count them.
    """
    ranks = estimate.rank_milliseconds()
    parts = [part for part in PARTS if any(milliseconds[part] for milliseconds in ranks)]
    memories = [memory for memory in ("hbm", "ddr") if any(estimate.capacity(memory))]
    used = {memory: estimate.used_bytes(memory) for memory in memories}
    activations = [f"{estimate.activation_bytes / 1e9:>14.3f}"] if estimate.activation_bytes else []
    held: list[Counter[str]] = [Counter() for _ in ranks]
    for table in estimate.tables:
        for shard in table.shards:
            kept = {"weight": shard.weight_bytes, "optimizer": shard.optimizer_bytes}
            held[shard.rank].update(kept | {"buffer": shard.hbm_bytes + shard.ddr_bytes - sum(kept.values())})
    alike: dict[str, list[int]] = {}  # ranks by what their line says
    for rank, (milliseconds, own) in enumerate(zip(ranks, held, strict=True)):
        cells = [
            f"{own['weight'] / 1e9:>10.3f}",
            f"{own['optimizer'] / 1e9:>10.3f}",
            f"{own['buffer'] / 1e9:>10.3f}",
            *activations,
            *(
                f"{used[memory][rank] / 1e9:>7.3f} / {estimate.capacity(memory)[rank] / 1e9:>6.1f}"
                for memory in memories
            ),
            f"{sum(milliseconds.values()):>8.3f}",
            *(f"{milliseconds[part]:>{max(8, len(part))}.3f}" for part in parts),
        ]
        alike.setdefault("  ".join(cells), []).append(rank)
    shown = list(alike.items())
    if len(shown) > MOST_LINES and not all_ranks:
        slowest = sorted(shown, key=lambda line: -sum(ranks[line[1][0]].values()))[:MOST_LINES]
        shown = [line for line in shown if line in slowest]
    names = [_ranks(same) for _, same in shown]
    width = max(4, *map(len, names))
    head = [f"{'rank':>{width}}", f"{'weights GB':>10}", f"{'moments GB':>10}", f"{'buffers GB':>10}"]
    head += ["activations GB"] * len(activations)
    head += [f"{memory.upper() + ' GB used / of':>16}" for memory in memories]
    lines = ["  ".join([*head, f"{'ms':>8}", *(f"{part:>8}" for part in parts)])]
    critical = estimate.critical_rank()
    for name, (text, same) in zip(names, shown, strict=True):
        lines.append(f"{name:>{width}}  {text}{'  <- critical' if critical in same else ''}")
    left = len(ranks) - sum(len(same) for _, same in shown)
    if left:
        lines.append(f"{left} ranks that are faster are left out")
    if activations:
        lines.append("ms are those of tables alone; the rest of the model takes its own time")
    return "\n".join(lines)


def _ranks(ranks: list[int]) -> str:
    """The ranks in a few characters."""
    text = ranges(ranks)
    return text if len(text) <= MOST_CHARACTERS else f"{len(ranks)} from {ranks[0]} on"


def compare(estimates: list[Estimate]) -> str:
    """One line per topology: the bytes of the fullest rank, and the time of the slowest rank."""
    lines = [f"{'topology':<20}  {'ranks':>5}  {'GB, fullest':>11}  {'of':>6}  {'ms, slowest':>11}  rows/s of tables"]
    for estimate in estimates:
        milliseconds = sum(estimate.rank_milliseconds()[estimate.critical_rank()].values())
        fullest = max(estimate.used_bytes(estimate.memory))
        lines.append(
            f"{estimate.topology:<20}  {estimate.world_size:>5}  {fullest / 1e9:>11.3f}  "
            f"{max(estimate.capacity(estimate.memory)) / 1e9:>6.1f}  {milliseconds:>11.3f}  "
            f"{1e3 * estimate.batch_size * estimate.world_size / milliseconds:,.0f}"
        )
    return "\n".join(lines)


def explain(estimate: Estimate, table: str) -> str:
    """Why the planner chose this sharding for ``table``: its cost, and the cost of at least the next best three ways.

    ``table`` may be its name as it is shown. Raises ValueError when the plan has no such table.
    """
    names = {shown_name(each.name): each for each in estimate.tables}
    tables = names | {each.name: each for each in estimate.tables}
    if table not in tables:
        raise ValueError(f"explained table must be in the plan: got {table!r}; the plan has {sorted(names)}")
    chosen = tables[table]
    ways = chosen.alternatives
    place = [(way.sharding_type, way.compute_kernel) for way in ways].index(
        (chosen.sharding_type, chosen.compute_kernel)
    )
    name = shown_name(chosen.name)
    lines = [f"{name} on {estimate.topology}: {chosen.rows:,} x {chosen.dim}, rows per bag {chosen.pooling_factors}"]
    lines.append(
        f"  {'sharding':<18}  {'kernel':<17}  {'shards':>6}  {'ms, slowest':>11}  {'ms, all':>8}  {'GB, largest':>11}"
    )
    for number, way in enumerate(ways[: max(NEXT_BEST, place) + 1]):
        lines.append(
            f"  {way.sharding_type:<18}  {way.compute_kernel:<17}  {way.num_shards:>6}  {way.slowest_shard_ms:>11.4f}  "
            f"{way.all_shards_ms:>8.4f}  {way.largest_shard_bytes / 1e9:>11.3f}"
            f"{'  <- chosen' if number == place else ''}"
        )
    if place:
        reason = (
            f"{place} of these would be faster for this table alone, but no tried plan with them is faster and fits"
        )
    elif len(ways) > 1:
        times = f"{ways[1].slowest_shard_ms / ways[0].slowest_shard_ms:.2f}"
        longer = "as long" if times == "1.00" else f"{times} times as long"
        reason = f"its slowest shard takes the least time; the next way takes {longer}"
    else:
        reason = "it is the only way that the topology and the options allow"
    return "\n".join([*lines, f"  chosen: {reason}"])


def diff(before: Sequence[Estimate], after: Sequence[Estimate]) -> str:
    """The differences between two files of plans, topology by topology.

    If each file has one plan that the other has no topology for, these two are compared with each other.
    """
    old, new = ({estimate.topology: estimate for estimate in plans} for plans in (before, after))
    same = sorted(old.keys() & new.keys())
    lines = [f"{topology}\n{_diff(old[topology], new[topology]) or 'the same plan'}" for topology in same]
    match sorted(old.keys() - new.keys()), sorted(new.keys() - old.keys()):
        case [was], [is_now]:
            lines.append(f"{was} -> {is_now}\n{_diff(old[was], new[is_now]) or 'the same plan'}")
        case gone, added:
            lines += [f"{topology}: only before" for topology in gone]
            lines += [f"{topology}: only after" for topology in added]
    return "\n".join(lines)


def _diff(before: Estimate, after: Estimate) -> str:
    """The tables whose sharding or ranks changed, and the step; empty when nothing changed."""
    lines = []
    old, new = ({table.name: table for table in estimate.tables} for estimate in (before, after))
    for name in sorted(old.keys() | new.keys()):
        if name not in old or name not in new:
            lines.append(f"{name}: only {'after' if name in new else 'before'}")
            continue
        cuts = [
            f"{table.rows:,} x {table.dim} {table.sharding_type} on {ranges([shard.rank for shard in table.shards])}"
            for table in (old[name], new[name])
        ]
        if cuts[0] != cuts[1]:
            lines.append(f"{name}: {cuts[0]} -> {cuts[1]}")
    steps = [max(sum(parts.values()) for parts in estimate.rank_milliseconds()) for estimate in (before, after)]
    fullest = [max(estimate.used_bytes(estimate.memory)) / 1e9 for estimate in (before, after)]
    if lines or steps[0] != steps[1]:
        lines.append(
            f"slowest rank: {steps[0]:.3f} -> {steps[1]:.3f} ms; fullest: {fullest[0]:.3f} -> {fullest[1]:.3f} GB"
        )
    return "\n".join(lines)
