"""The equations of HSTU as loops over pairs of events, in float64."""

from __future__ import annotations

from math import floor, log2

import torch
from torch import Tensor


def bucket(wait: int) -> int:
    """Two for each doubling of at least one second."""
    if wait < 1:
        return 0
    octave = floor(log2(wait))
    return 1 + 2 * octave + (wait >= 1.5 * 2**octave)


def attention(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    counts: list[tuple[int, int]],
    *,
    scale: float,
    divisor: float,
    bias: tuple[Tensor, ...] | None = None,
) -> Tensor:
    """The attention of users with (visible tokens, candidates), one pair of tokens after another."""
    rows, start = [], 0
    for visible, candidates in counts:
        for i in range(visible + candidates):
            row = torch.zeros(values.shape[1:], dtype=values.dtype)
            seen = [*range(min(i + 1, visible))] + ([i] if i >= visible else [])
            for j in seen:
                score = scale * (queries[start + i] * keys[start + j]).sum(-1)
                if bias is not None:
                    places, times, query_times, key_times = bias
                    distance = 0 if i == j else min(i, visible) - j
                    score = score + places[min(distance, len(places) - 1)]
                    score = score + times[bucket(int(query_times[start + i]) - int(key_times[start + j]))]
                row = row + (score * torch.sigmoid(score) / divisor)[:, None] * values[start + j]
            rows.append(row)
        start += visible + candidates
    return torch.stack(rows) if rows else values
