"""What the page shows of tables: the ranks of each table, and the ways to shard it that were considered."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from math import floor, log10

from dlrm_torchrec.pages.quantities import Quantity, size, time
from dlrm_torchrec.sharding.estimate.estimate import Alternative, Estimate, TableEstimate
from dlrm_torchrec.sharding.estimate.page.segments import ranks_text

SHADES = 5  # colours for the bytes of a shard; each stands for a tenth of the bytes of the one before
SHOWN_TABLES = 40
LISTED_FACTORS = 8
TICKS = 8


@dataclass(frozen=True)
class Block:
    """A run of ranks that hold about as many bytes of a table each."""

    shade: str
    first: int
    count: int
    title: str


@dataclass(frozen=True)
class Way:
    """A way to shard a table that was considered."""

    name: str
    is_chosen: bool
    contents: list[Quantity | str]


@dataclass(frozen=True)
class PlacedTable:
    """The ranks of a table, coloured by bytes, its numbers, and the ways considered."""

    name: str
    shape: str
    sharding_type: str
    ranks: str
    largest: Quantity  # bytes on one rank
    total_bytes: int
    blocks: list[Block]
    facts: dict[str, Quantity | str]
    ways: list[Way]
    reason: str  # why the chosen way was chosen


@dataclass(frozen=True)
class PlacementView:
    """One row per table, largest first; those after the first ones are folded."""

    world_size: int
    ticks: range
    grid: int  # ranks between two lines
    shades: dict[str, str]
    shown: list[PlacedTable]
    folded: list[PlacedTable]

    @property
    def folded_bytes(self) -> Quantity:
        return size(sum(table.total_bytes for table in self.folded))


def placement_view(estimate: Estimate) -> PlacementView:
    world_size = estimate.world_size
    by_rank = {table.name: _rank_bytes(table, world_size) for table in estimate.tables}
    top = 10 ** floor(log10(max(1, *(max(counts) for counts in by_rank.values()))))
    step = next(2**power for power in range(64) if 2**power * TICKS >= world_size)
    tables = sorted(estimate.tables, key=lambda table: -table.rows * table.dim)
    placed = [_placed(table, by_rank[table.name], top) for table in tables]
    return PlacementView(
        world_size,
        range(0, world_size, step),
        1 if world_size <= 4 * TICKS else step,
        _shade_names(top),
        placed[:SHOWN_TABLES],
        placed[SHOWN_TABLES:],
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
    names = {f"shade-{shade}": f"{size(top / 10**shade, 0)} and more" for shade in range(SHADES - 1)}
    return {**names, f"shade-{SHADES - 1}": f"under {size(top / 10 ** (SHADES - 2), 0)}"}


def _placed(placed: TableEstimate, by_rank: list[int], top: int) -> PlacedTable:
    on = [rank for rank, count in enumerate(by_rank) if count]
    ranks_name = "rank" if len(on) == 1 else "all ranks" if len(on) == len(by_rank) else "ranks"
    ways, reason = _ways(placed)
    return PlacedTable(
        placed.name,
        _product((placed.rows, placed.dim)),
        placed.sharding_type,
        f"{ranks_name} {ranks_text(on)}",
        size(max(by_rank)),
        sum(by_rank),
        _blocks(by_rank, top),
        _facts(placed),
        ways,
        reason,
    )


def _blocks(by_rank: list[int], top: int) -> list[Block]:
    blocks = []
    for shade, run in groupby(enumerate(by_rank), key=lambda each: _shade(each[1], top) if each[1] else None):
        if shade is not None:
            ranks, counts = zip(*run, strict=True)
            sizes = " to ".join(str(size(count)) for count in sorted({min(counts), max(counts)}))
            blocks.append(Block(f"shade-{shade}", ranks[0], len(ranks), f"rank {ranks_text(ranks)}: {sizes}"))
    return blocks


def _product(shape: tuple[int, ...]) -> str:
    return "\N{NO-BREAK SPACE}\N{MULTIPLICATION SIGN}\N{NO-BREAK SPACE}".join(f"{side:,}" for side in shape)


def _facts(placed: TableEstimate) -> dict[str, Quantity | str]:
    shards, more = placed.shards, len(placed.pooling_factors) - LISTED_FACTORS
    factors = ", ".join(f"{factor:g}" for factor in placed.pooling_factors[:LISTED_FACTORS])
    weights, moments = sum(shard.weight_bytes for shard in shards), sum(shard.optimizer_bytes for shard in shards)
    hbm, ddr = sum(shard.hbm_bytes for shard in shards), sum(shard.ddr_bytes for shard in shards)
    sizes = {shard.size for shard in shards}
    milliseconds = [sum(shard.milliseconds.values()) for shard in shards]
    return {
        "Rows \N{MULTIPLICATION SIGN} dim": _product((placed.rows, placed.dim)),
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


def _ways(placed: TableEstimate) -> tuple[list[Way], str]:
    """The ways to shard the table, fastest first, and why one of them was chosen."""

    def is_chosen(way: Alternative) -> bool:
        return (way.sharding_type, way.compute_kernel) == (placed.sharding_type, placed.compute_kernel)

    faster, chosen = next((number, way) for number, way in enumerate(placed.alternatives) if is_chosen(way))
    ways = []
    for way in placed.alternatives:
        contents: list[Quantity | str] = [
            time(way.slowest_shard_ms, 4),
            f"{way.slowest_shard_ms / chosen.slowest_shard_ms:,.2f} \N{MULTIPLICATION SIGN}",
            size(way.largest_shard_bytes),
            f"{way.largest_shard_bytes / chosen.largest_shard_bytes:,.2f} \N{MULTIPLICATION SIGN}",
            time(way.all_shards_ms, 4),
            f"{way.num_shards:,}",
            way.compute_kernel,
        ]
        ways.append(Way(way.sharding_type, way is chosen, contents))
    if faster:
        reason = (
            f"{faster} of these would be faster for this table alone, but no tried plan with them is faster and fits."
        )
    elif len(placed.alternatives) > 1:
        reason = "The slowest shard of the chosen way takes the least time of all ways."
    else:
        reason = "This is the only way that the topology and the options allow."
    return ways, reason
