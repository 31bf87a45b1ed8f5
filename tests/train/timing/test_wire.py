"""What ``Wire`` counts besides the collectives of a step: those of a step that is timed."""

from __future__ import annotations

import pickle

import torch.distributed as dist

from dlrm_torchrec.train.timing.wire import Wire
from tests.distributed import run_ranks


def count() -> list[int]:
    told: list[object] = [None] * dist.get_world_size()
    with Wire() as wire:
        dist.barrier()
        dist.all_gather_object(told, "x" * 10 * (1 + dist.get_rank()))
    return wire.sent


def test_a_barrier_sends_nothing_and_an_object_goes_to_all_others() -> None:
    longest = len(pickle.dumps("x" * 30))  # shorter ones are padded
    assert run_ranks(3, count) == [[0, 2 * 8, 2 * longest]] * 3  # a length in int64, then the bytes
