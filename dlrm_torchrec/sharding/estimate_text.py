"""Estimates as tables for a terminal."""

from __future__ import annotations

from dlrm_torchrec.sharding.estimate import PARTS, Estimate


def describe_ranks(estimate: Estimate) -> str:
    """Memory and estimated time per rank, as a table for a terminal; the rank that the others wait for is marked."""
    lines = [f"{'rank':>4}  {'HBM GB':>14}  {'DDR GB':>15}  {'ms':>7}  " + "  ".join(f"{p:>16}" for p in PARTS)]
    rows = zip(
        estimate.rank_bytes("hbm"),
        estimate.hbm_capacity,
        estimate.rank_bytes("ddr"),
        estimate.ddr_capacity,
        estimate.rank_milliseconds(),
        strict=True,
    )
    for rank, (hbm, hbm_capacity, ddr, ddr_capacity, parts) in enumerate(rows):
        mark = "  <- critical" if rank == estimate.critical_rank() else ""
        lines.append(
            f"{rank:>4}  {hbm / 1e9:>6.2f} / {hbm_capacity / 1e9:>5.1f}  {ddr / 1e9:>6.2f} / {ddr_capacity / 1e9:>6.1f}"
            f"  {sum(parts.values()):>7.3f}  " + "  ".join(f"{parts[part]:>16.3f}" for part in PARTS) + mark
        )
    return "\n".join(lines)


def compare(estimates: list[Estimate]) -> str:
    """One line per topology: what the fullest rank holds, and what the slowest one takes."""
    lines = [
        f"{'topology':<20}  {'ranks':>5}  {'HBM GB, fullest':>15}  {'of':>6}  {'ms, slowest':>11}  rows/s of tables"
    ]
    for estimate in estimates:
        milliseconds = sum(estimate.rank_milliseconds()[estimate.critical_rank()].values())
        lines.append(
            f"{estimate.topology:<20}  {estimate.world_size:>5}  {max(estimate.rank_bytes('hbm')) / 1e9:>15.2f}  "
            f"{max(estimate.hbm_capacity) / 1e9:>6.1f}  {milliseconds:>11.3f}  "
            f"{1e3 * estimate.batch_size * estimate.world_size / milliseconds:,.0f}"
        )
    return "\n".join(lines)


def explain(estimate: Estimate, table: str) -> str:
    """Why ``table`` is sharded as it is: its cost, and what the other ways would cost, fastest first.

    Raises ValueError when the plan has no such table.
    """
    tables = {each.name: each for each in estimate.tables}
    if table not in tables:
        raise ValueError(f"explained table must be in the plan: got {table!r}; the plan has {sorted(tables)}")
    chosen = tables[table]
    lines = [f"{table} on {estimate.topology}: {chosen.rows:,} x {chosen.dim}, rows per bag {chosen.pooling_factors}"]
    lines.append(
        f"  {'sharding':<18}  {'kernel':<6}  {'shards':>6}  {'ms, slowest':>11}  {'ms, all':>8}  {'GB, largest':>11}"
    )
    faster = 0
    for number, way in enumerate(chosen.alternatives):
        is_chosen = (way.sharding_type, way.compute_kernel) == (chosen.sharding_type, chosen.compute_kernel)
        faster = number if is_chosen else faster
        lines.append(
            f"  {way.sharding_type:<18}  {way.compute_kernel:<6}  {way.num_shards:>6}  {way.slowest_shard_ms:>11.4f}  "
            f"{way.all_shards_ms:>8.4f}  {way.largest_shard_bytes / 1e9:>11.3f}{'  <- chosen' if is_chosen else ''}"
        )
    lines.append(
        "  the fastest way by its slowest shard"
        if faster == 0
        else f"  {faster} would be faster alone: with the other tables they are too much memory or time for one rank"
    )
    return "\n".join(lines)


def diff(before: Estimate, after: Estimate) -> str:
    """What changed between two plans: tables sharded or placed otherwise, and the step; empty when nothing did."""
    lines = []
    old, new = ({table.name: table for table in estimate.tables} for estimate in (before, after))
    for name in sorted(old.keys() | new.keys()):
        if name not in old or name not in new:
            lines.append(f"{name}: only {'after' if name in new else 'before'}")
            continue
        cuts = [
            f"{table.rows:,} x {table.dim} {table.sharding_type} on {sorted({shard.rank for shard in table.shards})}"
            for table in (old[name], new[name])
        ]
        if cuts[0] != cuts[1]:
            lines.append(f"{name}: {cuts[0]} -> {cuts[1]}")
    steps = [max(sum(parts.values()) for parts in estimate.rank_milliseconds()) for estimate in (before, after)]
    fullest = [max(estimate.rank_bytes("hbm")) / 1e9 for estimate in (before, after)]
    if lines or steps[0] != steps[1]:
        lines.append(
            f"slowest rank: {steps[0]:.3f} -> {steps[1]:.3f} ms; fullest: {fullest[0]:.2f} -> {fullest[1]:.2f} GB"
        )
    return "\n".join(lines)
