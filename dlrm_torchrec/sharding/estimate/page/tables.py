"""The page's drawing of tables: the ranks of each table, and the ways to shard it that were considered."""

from __future__ import annotations

from html import escape
from itertools import groupby
from math import floor, log10

from dlrm_torchrec.sharding.estimate.estimate import Alternative, Estimate, TableEstimate
from dlrm_torchrec.sharding.estimate.page.draw import (
    cells,
    columns,
    legend,
    ranks_text,
    size,
    size_text,
    table,
    time,
)

SHADES = 5  # colours for the bytes of a shard; each stands for a tenth of the bytes of the one before
SHOWN_TABLES = 40
LISTED_FACTORS = 8
TICKS = 8


def placement_section(estimate: Estimate) -> str:
    """One row per table, largest first: its ranks, coloured by bytes. A row opens to show numbers and alternatives."""
    world_size = estimate.world_size
    by_rank = {table.name: _rank_bytes(table, world_size) for table in estimate.tables}
    tables = sorted(estimate.tables, key=lambda table: -table.rows * table.dim)
    top = 10 ** floor(log10(max(1, *(max(counts) for counts in by_rank.values()))))
    step = next(2**power for power in range(64) if 2**power * TICKS >= world_size)
    ticks = "".join(
        f'<span style="left:{100 * rank / world_size:.4g}%">{rank}</span>' for rank in range(0, world_size, step)
    )
    rows = [_row(table, by_rank[table.name], top) for table in tables]
    shown, rest = rows[:SHOWN_TABLES], rows[SHOWN_TABLES:]
    folded = (
        f'<details class="all"><summary>{len(rest)} smaller tables, '
        f"{size(sum(sum(by_rank[table.name]) for table in tables[SHOWN_TABLES:]))} in total</summary>"
        f'<ol class="tables" start="{SHOWN_TABLES + 1}">{"".join(rest)}</ol></details>'
        if rest
        else ""
    )
    grid = 1 if world_size <= 4 * TICKS else step
    return (
        "<h3>Ranks of every table</h3><p class=note>The largest tables come first. Open a table to see its numbers and "
        f"the ways to shard it that were considered.</p>{legend(_shade_names(top))}"
        f'<div class="placement" style="--cell:{100 * grid / world_size:.4g}%">'
        '<div class="axis" aria-hidden="true"><span>Table</span><span>Rows &times; dim</span>'
        f'<div class="ticks">{ticks}</div><span>Sharding</span><span>Ranks</span><span>Per rank</span></div>'
        f'<ol class="tables">{"".join(shown)}</ol>{folded}</div>'
    )


def _rank_bytes(placed: TableEstimate, world_size: int) -> list[int]:
    total = [0] * world_size
    for shard in placed.shards:
        total[shard.rank] += shard.hbm_bytes + shard.ddr_bytes
    return total


def _shade(count: int, top: int) -> int:
    """The number of the colour: 0 for at least ``top`` bytes, 1 for at least a tenth of it, and so on."""
    return next((shade for shade in range(SHADES - 1) if count * 10**shade >= top), SHADES - 1)


def _shade_names(top: int) -> dict[str, str]:
    names = {f"shade-{shade}": f"{size_text(top / 10**shade, 0)} and more" for shade in range(SHADES - 1)}
    return {**names, f"shade-{SHADES - 1}": f"under {size_text(top / 10 ** (SHADES - 2), 0)}"}


def _row(placed: TableEstimate, by_rank: list[int], top: int) -> str:
    blocks = ""
    for shade, run in groupby(enumerate(by_rank), key=lambda each: _shade(each[1], top) if each[1] else None):
        if shade is not None:
            ranks, counts = zip(*run, strict=True)
            sizes = " to ".join(size_text(count) for count in sorted({min(counts), max(counts)}))
            blocks += (
                f'<span class="shade-{shade}" style="left:{100 * ranks[0] / len(by_rank):.4g}%;'
                f'width:{100 * len(ranks) / len(by_rank):.4g}%" title="rank {ranks_text(ranks)}: {sizes}"></span>'
            )
    on = [rank for rank, count in enumerate(by_rank) if count]
    ranks_name = "rank" if len(on) == 1 else "all ranks" if len(on) == len(by_rank) else "ranks"
    return (
        f'<li><details class="table"><summary><span class="name">{escape(placed.name)}</span>'
        f'<span class="shape">{_product((placed.rows, placed.dim))}</span>'
        f'<span class="track" aria-hidden="true">{blocks}</span>'
        f'<span class="sharding">{escape(placed.sharding_type)}</span>'
        f'<span class="ranks">{ranks_name} {ranks_text(on)}</span><span class="bytes">{size(max(by_rank))}</span>'
        f'</summary><div class="opened">{_facts(placed)}{_ways(placed)}</div></details></li>'
    )


def _product(shape: tuple[int, ...]) -> str:
    return "&nbsp;&times;&nbsp;".join(f"{side:,}" for side in shape)


def _facts(placed: TableEstimate) -> str:
    shards, more = placed.shards, len(placed.pooling_factors) - LISTED_FACTORS
    factors = ", ".join(f"{factor:g}" for factor in placed.pooling_factors[:LISTED_FACTORS])
    weights, moments = sum(shard.weight_bytes for shard in shards), sum(shard.optimizer_bytes for shard in shards)
    hbm, ddr = sum(shard.hbm_bytes for shard in shards), sum(shard.ddr_bytes for shard in shards)
    sizes = {shard.size for shard in shards}
    milliseconds = [sum(shard.milliseconds.values()) for shard in shards]
    facts = {
        "Rows &times; dim": _product((placed.rows, placed.dim)),
        "Rows per bag": factors + (f" and {more:,} more features" if more > 0 else ""),
        "Shards": f"{len(shards):,} of {'at most ' if len(sizes) > 1 else ''}{_product(max(sizes))}",
        "Weights": size(weights),
        "Optimizer state": size(moments),
        "Buffers": size(hbm + ddr - weights - moments),
        "In HBM": size(hbm),
        "In DDR": size(ddr),
        "Slowest shard": time(max(milliseconds), 4),
        "All shards": time(sum(milliseconds), 4),
    }
    items = "".join(f"<div><dt>{name}</dt><dd>{fact}</dd></div>" for name, fact in facts.items())
    return f'<dl class="facts">{items}</dl>'


def _ways(placed: TableEstimate) -> str:
    def is_chosen(way: Alternative) -> bool:
        return (way.sharding_type, way.compute_kernel) == (placed.sharding_type, placed.compute_kernel)

    faster, chosen = next((number, way) for number, way in enumerate(placed.alternatives) if is_chosen(way))
    rows = ""
    for way in placed.alternatives:
        mark = ' <strong class="mark">chosen</strong>' if way is chosen else ""
        numbers = [
            time(way.slowest_shard_ms, 4),
            f"{way.slowest_shard_ms / chosen.slowest_shard_ms:,.2f} &times;",
            size(way.largest_shard_bytes),
            f"{way.largest_shard_bytes / chosen.largest_shard_bytes:,.2f} &times;",
            time(way.all_shards_ms, 4),
            f"{way.num_shards:,}",
            escape(way.compute_kernel),
        ]
        name = f"<th scope=row>{escape(way.sharding_type)}{mark}</th>"
        rows += f"<tr{' class=marked' if way is chosen else ''}>{name}{cells(numbers)}</tr>"
    head = columns(
        "Sharding", "Slowest shard", "times chosen", "Largest shard", "times chosen", "All shards", "Shards", "Kernel"
    )
    if faster:
        reason = (
            f"{faster} of these would be faster for this table alone, but no tried plan with them is faster and fits."
        )
    elif len(placed.alternatives) > 1:
        reason = "The slowest shard of the chosen way takes the least time of all ways."
    else:
        reason = "This is the only way that the topology and the options allow."
    caption = f"Ways considered for {escape(placed.name)}, fastest first"
    return table(f"<tr>{head}</tr>", rows, caption, kind="ways") + f'<p class="note">{reason}</p>'
