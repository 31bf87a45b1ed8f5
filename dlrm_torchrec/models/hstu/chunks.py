"""Scores samples a few at a time, so that what is kept for the backward pass are the rows of tables alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch.utils.checkpoint import checkpoint

from dlrm_torchrec.models.hstu.tokens import Samples

Rows = Mapping[str, torch.Tensor]  # by feature: (T, dim) of events, (real samples, dim) of context
Score = Callable[[Rows, Samples], torch.Tensor]


def score_in_chunks(score: Score, rows: Rows, samples: Samples, chunk_tokens: int) -> torch.Tensor:
    """``score(rows, samples)``, whose samples do not know of each other, of consecutive samples at a time.

    A chunk has the samples that end in the same ``chunk_tokens`` tokens, so it has at most that many and those of the
    longest sample. Its backward pass computes it again. With ``chunk_tokens`` 0, all samples are one chunk that is
    computed once.
    """
    if not chunk_tokens:
        return score(rows, samples)
    chunk_of = ((samples.lengths.cumsum(0) - 1).clamp(min=0) // chunk_tokens).unique_consecutive(return_inverse=True)[1]
    num_chunks = int(chunk_of[-1]) + 1 if len(chunk_of) else 0

    def sums(counts: torch.Tensor) -> list[int]:
        found: list[int] = counts.new_zeros(num_chunks).index_add_(0, chunk_of, counts).tolist()
        return found

    each, tokens = sums(torch.ones_like(samples.lengths)), sums(samples.lengths)
    real = sums((samples.lengths > 0).to(samples.lengths.dtype))
    pieces = {
        name: values.split(tokens if len(values) == len(samples.times) else real) for name, values in rows.items()
    }
    parts = zip(
        samples.times.split(tokens), samples.actions.split(tokens), samples.lengths.split(each),
        samples.num_candidates.split(each), strict=True,
    )  # fmt: skip
    results = []
    for number, part in enumerate(parts):
        of_chunk = {name: values[number] for name, values in pieces.items()}
        if torch.is_grad_enabled():
            results.append(checkpoint(score, of_chunk, Samples(*part), use_reentrant=False))
        else:
            results.append(score(of_chunk, Samples(*part)))
    return torch.cat(results) if results else score(rows, samples)
