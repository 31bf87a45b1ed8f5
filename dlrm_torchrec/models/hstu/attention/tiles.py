"""The pieces of blocked attention: tiles of scores, rows of a group's tokens, and their products."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch

from dlrm_torchrec.models.hstu.attention.layout import Group, Layout


def wide(tensor: torch.Tensor) -> torch.Tensor:
    """Numbers of at least 32 bits."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


class Tile(NamedTuple):
    """Some rows, the queries, and some columns, the keys, of the scores of a group's sequences."""

    rows: slice
    columns: slice
    hides: bool  # some columns from some rows


def tiles(group: Group, layout: Layout) -> Iterator[Tile]:
    """The tiles of a group's scores in which a row sees columns: those up to its own place."""
    users, rows = group.queries.shape
    columns, block = group.keys.shape[1], layout.block
    width = max(block, layout.tile_scores // (users * block))
    for first in range(0, rows, block):
        last = min(first + block, rows)
        for begin in range(0, min(last, columns), width):
            end = min(begin + width, last, columns)
            yield Tile(slice(first, last), slice(begin, end), end - 1 > first)


def read(tokens: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Rows (heads * users, length, dim) of ``tokens`` (heads, tokens + 1, dim) at indices (users, length)."""
    shape = (len(tokens) * len(index), index.shape[1], tokens.shape[2])
    return tokens.index_select(1, index.flatten()).view(shape)


def write(tokens: torch.Tensor, index: torch.Tensor, rows: torch.Tensor) -> None:
    """Put rows where ``read`` takes them from."""
    tokens.index_copy_(1, index.flatten(), rows.reshape(len(tokens), index.numel(), tokens.shape[2]).to(tokens.dtype))


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
