"""The vectors that are nearest to one vector, and how they are printed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal

import torch

from dlrm_torchrec.cli.vectors.source import Source
from dlrm_torchrec.terminal.shown import shown

Measure = Literal["cosine", "dot"]
Found = list[tuple[int, float]]  # ids and similarities, the nearest first


@torch.inference_mode()
def nearest(
    read: Callable[[torch.Tensor], torch.Tensor], chunks: Iterable[torch.Tensor], query: int, *, by: Measure, top: int
) -> Found:
    """The ``top`` ids of ``chunks`` whose vectors have the greatest cosine or dot product with that of ``query``.

    The search compares with every vector. A million of 64 numbers take 0.03 s on one core once they are composed,
    which costs three times as much, so an index (FAISS, hnswlib) could not be built in the time that it saves.
    """
    wanted = _scaled(read(torch.tensor([query])), by)[0]
    ids, scores = torch.empty(0, dtype=torch.int64), torch.empty(0)
    for chunk in chunks:
        others = chunk[chunk != query]
        ids = torch.cat([ids, others])
        scores = torch.cat([scores, _scaled(read(others), by) @ wanted])
        scores, order = scores.topk(min(top, len(scores)))
        ids = ids[order]
    return list(zip(ids.tolist(), scores.tolist(), strict=True))


def _scaled(vectors: torch.Tensor, by: Measure) -> torch.Tensor:
    return torch.nn.functional.normalize(vectors, dim=1) if by == "cosine" else vectors


def search_text(source: Source, query: int, found: Found, *, by: Measure) -> str:
    """Lines for a person: what is asked, and each value that was found."""
    feature, counts = source.values.feature, source.counts
    asked = f"{feature.name} {source.values.name(query)}"
    asked += "" if counts is None else f", seen {counts.times[query]:,} {counts}"
    lines = [f"{asked}; {source.title}"]
    if feature.encoding == "hash":
        lines.append(f"hashed: all values of a bucket share its vector; there are {feature.rows - 1:,} buckets")
    if counts is not None and counts.times[query] < source.least_seen:
        lines.append("training saw this value too rarely for its neighbours to mean anything")
    seen = [""] * len(found) if counts is None else [f"{counts.times[id]:,}" for id, _ in found]
    width = max(map(len, ["seen", *seen])) if counts is not None else 0
    lines.append(f"{by:>10}  " + (f"{'seen':>{width}}  " if width else "") + "value")
    for (id, score), times in zip(found, seen, strict=True):
        lines.append(f"{score:10.4f}  " + (f"{times:>{width}}  " if width else "") + source.values.name(id))
    return shown("\n".join(lines))
