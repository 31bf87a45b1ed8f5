"""Attention with SiLU in place of softmax over jagged sequences, in memory that is linear in their tokens."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch.nn.functional import silu

from dlrm_torchrec.models.hstu.attention.bias import BiasTables, time_buckets
from dlrm_torchrec.models.hstu.attention.layout import Layout
from dlrm_torchrec.models.hstu.attention.tiles import (
    Distances,
    Indices,
    Tile,
    add_product,
    by_head,
    by_token,
    multiply,
    read,
    tiles,
    wide,
    write,
)


@torch.compiler.disable  # type: ignore[untyped-decorator]  # PyTorch's; the loops follow the lengths of each batch
def silu_attention(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    layout: Layout,
    *,
    scale: float,
    divisor: float,
    bias: BiasTables | None = None,
) -> torch.Tensor:
    """Σ_j SiLU(scale <q_i, k_j> + bias_ij) / divisor v_j over the tokens j that i attends to.

    The result is (tokens, heads, value dim). This is arXiv 2402.17152, equation 2, with candidates after the history.
    It works on tiles of queries and keys of sequences of about equal length, and computes them again in the backward
    pass: what is kept for it are the inputs. Products of bfloat16 are summed in float32. GPUs get the same with larger
    tiles, because torch's flex_attention always takes a softmax, and FBGEMM's wheels have no kernel of HSTU.

    Args:
        queries: (tokens, heads, key dim)
        keys: (tokens, heads, key dim)
        values: (tokens, heads, value dim)
        layout: who attends to whom
        scale: the factor of the products of queries and keys
        divisor: n of the equation
        bias: what distances add to scores; None means nothing
    """
    with torch.autocast(queries.device.type, enabled=False):
        inputs = (queries, keys, values, *(bias or (None,) * 4))
        sums: torch.Tensor = _ToVisibleTokens.apply(layout, scale, divisor, *inputs)  # type: ignore[no-untyped-call]  # PyTorch's
        own = layout.candidates
        if not len(own):
            return sums
        scores = scale * (wide(queries[own]) * wide(keys[own])).sum(-1)
        if bias is not None:
            waits = time_buckets(bias.query_times[own] - bias.key_times[own])
            scores = scores + (bias.places[0] + bias.times[waits])[:, None]
        to_itself = (silu(scores) / divisor).unsqueeze(-1) * wide(values[own])
        return sums.index_add(0, own, to_itself.to(sums.dtype))


class _Equation(NamedTuple):
    """What the scores of one group are, beside its rows."""

    scale: float
    divisor: float
    block: int  # of its tiles
    distances: Distances | None

    def scores(self, q: torch.Tensor, k: torch.Tensor, tile: Tile) -> tuple[torch.Tensor, Indices | None]:
        """Scores of a tile, and where the tables have its bias."""
        scores, found = multiply(q[:, tile.rows], k[:, tile.columns].transpose(1, 2), self.scale), None
        if self.distances is not None:
            found = self.distances.indices(tile)
            self.distances.add_to(scores, found)
        return scores if tile.mask is None else scores.add_(tile.mask), found


class _ToVisibleTokens(torch.autograd.Function):
    """The sum without a candidate's attention to itself."""

    @staticmethod
    def forward(ctx: Any, layout: Layout, scale: float, divisor: float, *inputs: Any) -> torch.Tensor:
        queries, keys, values, *bias = inputs
        ctx.save_for_backward(*inputs)
        ctx.layout, ctx.scale, ctx.divisor = layout, scale, divisor
        asking, asked, given = by_head(queries), by_head(keys), by_head(values)
        result = torch.zeros_like(given)
        for group in layout.groups:
            q, k, v = read(asking, group.queries), read(asked, group.keys), read(given, group.keys)
            equation = _Equation(
                scale, divisor, layout.block, None if bias[0] is None else Distances(group, BiasTables(*bias))
            )
            total = wide(q).new_zeros(*q.shape[:2], v.shape[2])
            for tile in tiles((q.shape[1], k.shape[1]), equation.block, total):
                scores, _ = equation.scores(q, k, tile)
                weights = silu(scores, inplace=True).to(v.dtype)
                add_product(total[:, tile.rows], weights, v[:, tile.columns], 1 / divisor)
            write(result, group.queries, total)
        return by_token(result)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[torch.Tensor | None, ...]:
        queries, keys, values, *bias = ctx.saved_tensors
        asking, asked, given, grad = by_head(queries), by_head(keys), by_head(values), by_head(grads[0])
        results = [torch.zeros_like(each) for each in (asking, asked, given)]
        table_grads = [torch.zeros_like(table) for table in bias[:2] if table is not None]
        for group in ctx.layout.groups:
            distances = None if bias[0] is None else Distances(group, BiasTables(*bias))
            rows = (read(asking, group.queries), read(asked, group.keys), read(given, group.keys))
            equation = _Equation(ctx.scale, ctx.divisor, ctx.layout.block, distances)
            of_group = _gradients(equation, rows, read(grad, group.queries), table_grads)
            for result, index, each in zip(results, (group.queries, group.keys, group.keys), of_group, strict=True):
                write(result, index, each)
        return (None, None, None, *map(by_token, results), *(table_grads or (None, None)), None, None)


def _gradients(
    equation: _Equation, rows: tuple[torch.Tensor, ...], grad: torch.Tensor, table_grads: list[torch.Tensor]
) -> list[torch.Tensor]:
    """Gradients of a group's queries, keys and values; those of the tables are added to ``table_grads``."""
    q, k, v = rows
    q_grad, k_grad, v_grad = totals = [torch.zeros_like(wide(each)) for each in rows]
    for tile in tiles((q.shape[1], k.shape[1]), equation.block, q_grad):
        down, across = tile.rows, tile.columns
        scores, places = equation.scores(q, k, tile)
        weights = silu(scores).to(v.dtype)
        add_product(v_grad[:, across], weights.transpose(1, 2), grad[:, down], 1 / equation.divisor)
        of_weights = multiply(grad[:, down], v[:, across].transpose(1, 2), 1 / equation.divisor)
        of_scores = torch.ops.aten.silu_backward(of_weights, scores)
        if places is not None:
            of_all_heads = of_scores.view(-1, *places.of_places.shape).sum(0).flatten()
            for table_grad, index in zip(table_grads, places, strict=True):
                table_grad.index_add_(0, index.flatten(), of_all_heads)
        of_scores = of_scores.to(q.dtype)
        add_product(q_grad[:, down], of_scores, k[:, across], equation.scale)
        add_product(k_grad[:, across], of_scores.transpose(1, 2), q[:, down], equation.scale)
    return totals
