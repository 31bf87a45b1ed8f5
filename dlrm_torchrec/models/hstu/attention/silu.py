"""Attention with SiLU in place of softmax over jagged sequences, in memory that is linear in their tokens."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch.nn.functional import silu

from dlrm_torchrec.models.hstu.attention.bias import BiasTables, time_buckets
from dlrm_torchrec.models.hstu.attention.distances import Distances
from dlrm_torchrec.models.hstu.attention.layout import Group, Layout
from dlrm_torchrec.models.hstu.attention.tiles import (
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
    """The scores of one group."""

    layout: Layout
    group: Group
    scale: float
    distances: Distances

    def tiles(self, q: torch.Tensor, k: torch.Tensor) -> Iterator[tuple[Tile, torch.Tensor, torch.Tensor | None]]:
        """Tiles, their scores (heads * users, rows, columns), and where the table of times has a part of them."""
        for tile in tiles(self.group, self.layout):
            asking, asked = q[:, tile.rows], k[:, tile.columns].transpose(1, 2)
            added, found = self.distances.of(tile)
            if added is None:
                yield tile, multiply(asking, asked, self.scale), None
            else:
                scores = added.repeat(len(q) // len(added), 1, 1)
                add_product(scores, asking, asked, self.scale)
                yield tile, scores, found


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
            total = wide(q).new_zeros(*q.shape[:2], v.shape[2])
            equation = _Equation(layout, group, scale, _distances(group, bias, total.dtype))
            for tile, scores, _ in equation.tiles(q, k):
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
            rows = (read(asking, group.queries), read(asked, group.keys), read(given, group.keys))
            distances = _distances(group, bias, wide(rows[0]).dtype)
            equation = _Equation(ctx.layout, group, ctx.scale, distances)
            of_group = _gradients(equation, rows, read(grad, group.queries), 1 / ctx.divisor)
            for result, index, each in zip(results, (group.queries, group.keys, group.keys), of_group, strict=True):
                write(result, index, each)
            for table_grad, each in zip(table_grads, distances.table_gradients(), strict=True):
                table_grad.add_(each, alpha=1 / ctx.divisor)
        return (None, None, None, *map(by_token, results), *(table_grads or (None, None)), None, None)


def _distances(group: Group, bias: list[Any], dtype: torch.dtype) -> Distances:
    return Distances(group, None if bias[0] is None else BiasTables(*bias), dtype)


def _gradients(
    equation: _Equation, rows: tuple[torch.Tensor, ...], grad: torch.Tensor, factor: float
) -> list[torch.Tensor]:
    """``factor`` times the gradients of a group's queries, keys and values; its distances take in those of the bias."""
    q, k, v = rows
    q_grad = torch.zeros_like(wide(q))
    # Keys and values lie in columns here, so that products read the weights row by row, which is faster.
    k_grad, v_grad = (wide(each).new_zeros(len(each), each.shape[2], each.shape[1]) for each in (k, v))
    for tile, scores, found in equation.tiles(q, k):
        down, across = tile.rows, tile.columns
        weights = silu(scores).to(v.dtype)
        add_product(v_grad[:, :, across], grad[:, down].transpose(1, 2), weights, factor)
        of_weights = wide(torch.bmm(grad[:, down], v[:, across].transpose(1, 2)))
        of_scores = torch.ops.aten.silu_backward.grad_input(of_weights, scores, grad_input=scores)
        if found is not None:
            of_all_heads = of_scores.view(-1, len(equation.group.queries), *of_scores.shape[1:]).sum(0)
            equation.distances.add_gradient(tile, found, of_all_heads)
        of_scores = of_scores.to(q.dtype)
        add_product(q_grad[:, down], of_scores, k[:, across], factor * equation.scale)
        add_product(k_grad[:, :, across], q[:, down].transpose(1, 2), of_scores, factor * equation.scale)
    return [q_grad, k_grad.transpose(1, 2), v_grad.transpose(1, 2)]
