"""The pieces of blocked attention: tiles of scores, rows of a group's tokens, and the bias of their distances."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch

from dlrm_torchrec.models.hstu.attention.bias import BiasTables, time_buckets
from dlrm_torchrec.models.hstu.attention.layout import Group

HIDDEN = -1e4  # added to a score, it makes SiLU and its derivative exactly 0: exp(1e4) is infinite


def wide(tensor: torch.Tensor) -> torch.Tensor:
    """Numbers of at least 32 bits."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


class Tile(NamedTuple):
    """Some rows, the queries, and some columns, the keys, of the scores of a group's sequences."""

    rows: slice
    columns: slice
    mask: torch.Tensor | None  # (rows, columns), to be added to the scores; None if all columns are visible


def tiles(scores: tuple[int, int], block: int, like: torch.Tensor) -> Iterator[Tile]:
    """The tiles of scores (rows, columns) in which a row sees columns: those up to its own place.

    A tile has at most ``block`` rows and columns. Masks have the device and type of ``like``.
    """
    rows, columns = scores
    for first in range(0, rows, block):
        last = min(first + block, rows)
        for begin in range(0, min(last, columns), block):
            end = min(begin + block, last, columns)
            mask = None
            if end - 1 > first:
                mask = torch.full((last - first, end - begin), HIDDEN, dtype=like.dtype, device=like.device)
                mask = mask.triu_(first - begin + 1)
            yield Tile(slice(first, last), slice(begin, end), mask)


def read(tokens: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Rows (heads * users, length, dim) of ``tokens`` (heads, tokens + 1, dim) at indices (users, length)."""
    shape = (len(tokens) * len(index), index.shape[1], tokens.shape[2])
    return tokens.index_select(1, index.flatten()).view(shape)


def write(tokens: torch.Tensor, index: torch.Tensor, rows: torch.Tensor) -> None:
    """Put rows where ``read`` takes them from."""
    tokens.index_copy_(1, index.flatten(), rows.view(len(tokens), index.numel(), tokens.shape[2]).to(tokens.dtype))


def by_head(tokens: torch.Tensor) -> torch.Tensor:
    """(heads, tokens + 1, dim) of (tokens, heads, dim); the last row is what padding reads: zeros."""
    count, heads, dim = tokens.shape
    rows = tokens.new_zeros(heads, count + 1, dim)
    rows[:, :count] = tokens.transpose(0, 1)
    return rows


def by_token(rows: torch.Tensor) -> torch.Tensor:
    """The opposite of ``by_head``."""
    return rows[:, :-1].transpose(0, 1)


def multiply(left: torch.Tensor, right: torch.Tensor, factor: float) -> torch.Tensor:
    """``factor`` times the products of matrices (count, ...), as numbers of at least 32 bits."""
    return wide(torch.bmm(left, right)).mul_(factor)


def add_product(target: torch.Tensor, left: torch.Tensor, right: torch.Tensor, factor: float) -> None:
    """Add ``factor`` times the products of matrices (count, ...) to ``target``, which may be of a wider type."""
    if target.dtype == left.dtype:
        target.baddbmm_(left, right, alpha=factor)
    else:
        target.add_(torch.bmm(left, right), alpha=factor)


class Indices(NamedTuple):
    """Where the tables have the bias of scores, (users, rows, columns) each."""

    of_places: torch.Tensor
    of_times: torch.Tensor


class Distances:
    """The bias of one group's scores, looked up in tables."""

    def __init__(self, group: Group, tables: BiasTables) -> None:
        self.tables, self.places = tables, group.places
        query_times, key_times = (torch.cat([each, each.new_zeros(1)]) for each in tables[2:])
        self.query_times, self.key_times = query_times[group.queries], key_times[group.keys]

    def indices(self, tile: Tile) -> Indices:
        """Where the tables have the bias of a tile."""
        columns = torch.arange(tile.columns.start, tile.columns.stop, device=self.places.device)
        places = self.places[:, tile.rows, None] - columns
        waits = self.query_times[:, tile.rows, None] - self.key_times[:, None, tile.columns]
        return Indices(places.clamp_(0, len(self.tables.places) - 1), time_buckets(waits))

    def add_to(self, scores: torch.Tensor, found: Indices) -> None:
        """Add the bias to scores (heads * users, rows, columns)."""
        bias = self.tables.places.index_select(0, found.of_places.flatten())
        bias += self.tables.times.index_select(0, found.of_times.flatten())
        scores.view(-1, *found.of_places.shape).add_(bias.view(found.of_places.shape))
