"""What a rank draws at a step."""

from __future__ import annotations

from itertools import product

import torch

from dlrm_torchrec.train.world import World


def drawn(seed: int, step: int, rank: int) -> tuple[float, ...]:
    world = World(rank=rank, size=4, local_size=4, device=torch.device("cpu"), control=None)  # type: ignore[arg-type]  # alone
    world.seed_step(seed, step)
    return tuple(torch.rand(3).tolist())


def test_what_a_step_draws_follows_from_its_seed_its_number_and_its_rank_alone() -> None:
    cases = list(product(range(3), range(3), range(3)))
    found = [drawn(*case) for case in cases]
    torch.rand(7)
    assert [drawn(*case) for case in reversed(cases)] == found[::-1]
    assert len(set(found)) == len(cases)
