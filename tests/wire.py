"""Bytes of the collectives of a sharded collection."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torchrec.distributed.embedding import ShardedEmbeddingCollection
from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrm_torchrec.train.timing.wire import Wire


class Traffic(NamedTuple):
    """Bytes of each collective of one step."""

    ids: list[int]
    vectors: list[int]
    gradients: list[int]


def traffic(
    sharded: ShardedEmbeddingBagCollection | ShardedEmbeddingCollection, features: KeyedJaggedTensor
) -> Traffic:
    """What this rank sends in one forward and backward pass."""
    context = sharded.create_context()
    with Wire() as ids:
        arrived = sharded.input_dist(context, features).wait().wait()
    with Wire() as vectors:
        found = sharded.compute_and_output_dist(context, arrived).wait()
    with Wire() as gradients:
        parts = [each.values() for each in found.values()] if isinstance(found, dict) else [found.values()]
        torch.cat(parts).sum().backward()
    return Traffic(ids.sent, vectors.sent, gradients.sent)
