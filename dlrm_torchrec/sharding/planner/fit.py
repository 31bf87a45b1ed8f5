"""Which tables to compress, and how strongly, so that they fit a number of bytes with the least loss.

The loss of a table is the expected number of lookups per sample that read a row of other ids. If c ids share each row
of the largest partition, the row that id x reads gets the share p(x) / (p(x) + S) of its updates from x itself. Here p
is an id's share of the lookups, and S is the sum of p over the c - 1 other ids of the row:

    loss = pooling_factor * sum over x of p(x) * E[1 - p(x) / (p(x) + S)]

The loss of a plain table is 0. A rare id costs almost nothing; a frequent id costs much if it shares its row with
another frequent id. The model assumes that random ids share a row, which is true for hashed ids. Then E follows from
the histogram of frequencies, because p / (p + S) is the integral of p exp(-p u) exp(-S u) over u > 0.

Without measured frequencies, ids count as distributed by Zipf's law, as those of real logs roughly are. Of equally
frequent ids E would be 1 - 1/c, which hardly grows from c = 8 on: some tables would be given up for others (LOG.md).

A hot_cold table gets the share of hot rows, up to a half, that loses least; only ids that share rows count then.

Unless another kind is asked for, vocabularies become hot_cold tables, which lost least AUC at equal bytes, and other
tables chinese_remainder (RESULTS.md). Both distinguish any two ids, which this loss does not measure: hashing lost five
times as much AUC with equal rows. They also separate neighbouring ids. The ids of a vocabulary are sorted by frequency,
so quotients would let frequent ids share a row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torchrec.modules.embedding_configs import DATA_TYPE_NUM_BITS

from dlrm_torchrec.embeddings.compositional.partitions.hot_cold import HotCold
from dlrm_torchrec.embeddings.compositional.table_configs import CompositionalEmbeddingBagConfig
from dlrm_torchrec.embeddings.config import TablesConfig
from dlrm_torchrec.embeddings.tables import bytes_of_ids, partition_of, stored_config
from dlrm_torchrec.schema import AccessStatistics, Table
from dlrm_torchrec.sharding.planner.enumerator import optimizer_bytes
from dlrm_torchrec.sharding.planner.shortfall import DoesNotFitError
from dlrm_torchrec.table_names import shown_name

Planned = TypeVar("Planned")
_STEPS = 400  # steps of the integral over log u; its error is far below that of the histogram
# Shares of hot rows that are tried. More than half lower the loss further, but leave few rows to all other ids.
_HOT_SHARES = (0.05, 0.1, 0.2, 0.35, 0.5)
_BISECTIONS = 8  # find the budget to within 1 / 256 of the free bytes


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One way to store a table."""

    config: TablesConfig
    rows: int  # stored rows
    bytes: int  # bytes of weights and moments, and of listed classes or maps of ids
    loss: float  # lookups per sample that read rows of other ids


def choices(
    table: Table,
    base: TablesConfig,
    optimizer: type[torch.optim.Optimizer],
    *,
    pooling_factor: float,
    access: AccessStatistics | None,
) -> list[Choice]:
    """Ways to store ``table``: first plain, then compressed more and more; each choice is smaller than the one before.

    Three partitions replace two as soon as the second would be larger than the first. Clusters have one size, that of
    their assignments, and count as classes of random ids. A table of ids without end stays as it is.

    Args:
        table: the table, not compressed
        base: the kind and operation of the compressed tables; a plain ``base`` means hot_cold for a table whose ids are
            in order of frequency, as long as its rows suffice, and else chinese_remainder
        optimizer: the optimizer, which decides the bytes of the moments
        pooling_factor: the lookups of the table per sample
        access: how often ids are looked up; None means as often as Zipf's law says
    """
    access = access or zipf(table.rows)
    kind, chosen = base.kind, base.kind not in ("plain", "mixed_dimension")
    if not chosen:
        kind = "hot_cold" if table.by_frequency else "chinese_remainder"
    plain = replace(base, kind="plain", max_rows=0, budget=0, assignments="")
    ways = [_choice(table, plain, optimizer, loss=0.0)]
    if kind == "clusters":
        assigned = stored_config(table, base)
        if isinstance(assigned, CompositionalEmbeddingBagConfig):
            collisions = -(-table.rows // max(assigned.partition.classes))
            config = replace(base, collisions=collisions, max_rows=0, budget=0)
            ways.append(_choice(table, config, optimizer, pooling_factor * shared(table.rows, collisions, access)))
        return ways if ways[-1].bytes <= ways[0].bytes else ways[:1]
    if table.rows <= base.threshold or table.managed:
        return ways
    for collisions in _strengths(table.rows):
        config, loss = replace(plain, kind=kind, collisions=collisions), shared(table.rows, collisions, access)
        if kind == "hot_cold":
            found = _best_hot(config, table.rows, access)
            if found is None and chosen:
                break
            kind = "chinese_remainder" if found is None else kind
            config, loss = found or (replace(config, kind=kind), loss)
        elif kind == "managed":  # all ids without a row share a few
            loss = shared(table.rows, table.rows, access, num_hot=table.rows // collisions)
        if kind in ("chinese_remainder", "mixed_radix") and collisions**2 > table.rows:
            config = replace(config, partitions=3)
        choice = _choice(table, config, optimizer, pooling_factor * loss)
        if choice.bytes < ways[-1].bytes:
            ways.append(choice)
    return ways


def _best_hot(config: TablesConfig, rows: int, access: AccessStatistics) -> tuple[TablesConfig, float] | None:
    """``config`` with the share of hot rows of the least loss, and that loss; None if no share is possible."""
    found: tuple[TablesConfig, float] | None = None
    for hot in _HOT_SHARES:
        tried = replace(config, hot=hot)
        try:
            partition = partition_of(tried, rows)
        except ValueError:  # too few rows are left for the other ids
            continue
        assert isinstance(partition, HotCold)
        ids_per_row = -(-partition.tail.num_ids // max(partition.tail.classes))
        loss = shared(rows, ids_per_row, access, num_hot=partition.num_hot)
        if found is None or loss < found[1]:
            found = tried, loss
    return found


def best(tables: Mapping[str, Sequence[Choice]], budget: int) -> dict[str, Choice] | None:
    """The choices with the least loss that need at most ``budget`` bytes together; None when there are none.

    This solves a knapsack problem by dynamic programming over at least 10,000 parts of the budget. Bytes are rounded up
    to whole parts, so the result never exceeds the budget, and may miss the best choices by that rounding.
    """
    chosen = {name: ways[0] for name, ways in tables.items() if len(ways) == 1}
    free = budget - sum(choice.bytes for choice in chosen.values())
    open_ = {name: ways for name, ways in tables.items() if len(ways) > 1}
    parts = max(10_000, 400 * len(open_))
    if free < sum(min(choice.bytes for choice in ways) for ways in open_.values()):
        return None
    unit = max(free, 1) / parts
    losses = np.zeros(parts + 1)  # least loss of the tables so far, by the largest number of parts they may use
    taken: list[NDArray[np.int64]] = []
    for ways in open_.values():
        after = np.full((len(ways), parts + 1), np.inf)
        for number, choice in enumerate(ways):
            size = math.ceil(choice.bytes / unit)
            if size <= parts:
                after[number, size:] = losses[: parts + 1 - size] + choice.loss
        taken.append(after.argmin(axis=0))
        losses = after.min(axis=0)
    if not math.isfinite(losses[-1]):  # the smallest choices fit, but not after rounding up to parts
        return {name: min(ways, key=lambda choice: choice.bytes) for name, ways in tables.items()}
    left = parts
    for (name, ways), numbers in zip(reversed(open_.items()), reversed(taken), strict=True):
        chosen[name] = ways[numbers[left]]
        left -= math.ceil(chosen[name].bytes / unit)
    return {name: chosen[name] for name in tables}


def fit(
    tables: Mapping[str, Sequence[Choice]], attempt: Callable[[dict[str, Choice]], Planned], free_bytes: int
) -> tuple[dict[str, Choice], Planned]:
    """The choices with the least loss that ``attempt`` can plan, and its plan.

    A bisection finds the largest budget that can be planned, up to ``free_bytes``, the bytes available for weights and
    moments. Raises the DoesNotFitError of ``attempt`` when not even the smallest choices fit.
    """
    plain = {name: ways[0] for name, ways in tables.items()}
    try:
        return plain, attempt(plain)
    except DoesNotFitError:
        pass
    smallest = {name: ways[-1] for name, ways in tables.items()}
    fitted = smallest, attempt(smallest)
    low = sum(choice.bytes for choice in smallest.values())
    high = max(low, free_bytes)
    for _ in range(_BISECTIONS):
        middle = (low + high) // 2
        tried = best(tables, middle)
        assert tried is not None
        try:
            fitted, low = (tried, attempt(tried)), middle
        except DoesNotFitError:
            high = middle
    return fitted


def equally(tables: Mapping[str, Sequence[Choice]], budget: int) -> dict[str, Choice] | None:
    """The naive rule: all tables are compressed equally, as little as a total of at most ``budget`` bytes allows."""
    for number in range(max(map(len, tables.values()))):
        chosen = {name: ways[min(number, len(ways) - 1)] for name, ways in tables.items()}
        if sum(choice.bytes for choice in chosen.values()) <= budget:
            return chosen
    return None


def describe_choices(chosen: Mapping[str, Choice]) -> str:
    """A table for a terminal: which tables are compressed, how strongly, and their loss."""
    compressed = {shown_name(name): choice for name, choice in chosen.items() if choice.config.kind != "plain"}
    width = max(map(len, [*compressed, "table"]))
    lines = [f"{'table':<{width}}  {'stored as':<18}  {'ids per row':>11}  {'rows':>11}  {'GB':>8}  loss"]
    lines += [
        f"{name:<{width}}  {choice.config.kind:<18}  {choice.config.collisions:>11,}  {choice.rows:>11,}  "
        f"{choice.bytes / 1e9:>8.3f}  {choice.loss:.4g}"
        for name, choice in compressed.items()
    ]
    total = sum(choice.bytes for choice in chosen.values()), sum(choice.loss for choice in chosen.values())
    return "\n".join(
        [
            *lines,
            f"{len(chosen) - len(compressed)} tables stay plain; {total[0] / 1e9:.2f} GB of weights and moments; "
            f"{total[1]:.4g} lookups per sample read rows of other ids",
        ]
    )


def zipf(rows: int) -> AccessStatistics:
    """Statistics of ``rows`` ids that are looked up as Zipf's law says: the r-th as often as the first divided by r."""
    first = rows << 10  # lookups; so the rarest id has 1,024, and rounding to whole lookups is small
    histogram = [(0, 0)] * 10
    for power in range(10, first.bit_length()):
        before, last = first >> power + 1, min(first >> power, rows)  # the ranks of the ids of this entry
        ends = torch.tensor([before + 1, last + 1], dtype=torch.float64).digamma()
        histogram.append((last - before, round(first * float(ends[1] - ends[0]))))  # first / r, summed over them
    total = sum(lookups for _, lookups in histogram)
    return AccessStatistics(
        samples=total, lookups=total, distinct=rows, top_mass=(), reuse=0.0, histogram=tuple(histogram)
    )


def shared(rows: int, collisions: int, access: AccessStatistics, *, num_hot: int = 0) -> float:
    """Share of a table's lookups that read rows of other ids: the mean of 1 - p / (p + S) over lookups.

    The ``num_hot`` most frequent ids have rows of their own; ``collisions`` of the others share each row.
    """
    rows -= num_hot
    ids, lookups = _without_hot(access, num_hot)
    every = sum(entry[1] for entry in access.histogram)
    if not len(ids):
        return 0.0
    p = lookups / lookups.sum() / ids
    log_u = np.linspace(np.log(1e-8 / p.max()), np.log(50 / p.min()), _STEPS)
    pu = np.exp(log_u)[:, None] * p
    apart = np.minimum(-np.expm1(-pu) @ ids / max(rows, ids.sum()), 1 - np.finfo(float).eps)  # 1 - E exp(-p u)
    others = np.exp((min(collisions, rows) - 1) * np.log1p(-apart))
    own = np.trapezoid(pu * np.exp(-pu) * others[:, None], log_u, axis=0)
    return float((lookups.sum() - lookups @ np.minimum(own, 1)) / every)


def _without_hot(access: AccessStatistics, num_hot: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Ids and lookups of the histogram's entries without the ``num_hot`` most frequent ids.

    Within an entry, whose ids are looked up 2^b to 2^(b+1) times, frequencies count as evenly spread around their mean.
    """
    found = []
    for power, (ids, lookups) in reversed(list(enumerate(access.histogram))):
        hot = min(ids, num_hot)
        num_hot -= hot
        if ids > hot:
            mean = lookups / ids
            spread = min(mean - 2**power, 2 ** (power + 1) - mean)
            found.append((ids - hot, lookups - hot * (mean + (1 - hot / ids) * spread)))
    cold, lookups_left = np.array(found, dtype=np.float64).reshape(-1, 2).T
    return cold, lookups_left


def _choice(table: Table, config: TablesConfig, optimizer: type[torch.optim.Optimizer], loss: float) -> Choice:
    stored = stored_config(table, config)
    if isinstance(stored, CompositionalEmbeddingBagConfig):
        stored = stored.stacked()
    rows, columns = int(stored.num_embeddings), int(stored.embedding_dim)
    weights = rows * columns * DATA_TYPE_NUM_BITS[stored.data_type] // 8
    num_bytes = weights + optimizer_bytes(optimizer, (rows, columns)) + bytes_of_ids(stored)
    return Choice(config=config, rows=rows, bytes=num_bytes, loss=loss)


def _strengths(rows: int) -> list[int]:
    """2, 3, 4, 6, 8, 12, ... ids per row, for as long as more ids per row save rows."""
    powers = range(1, rows.bit_length())
    return [collisions for power in powers for collisions in (1 << power, 3 << power - 1)]
