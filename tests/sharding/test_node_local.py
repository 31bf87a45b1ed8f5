"""Groups of ranks with tables of their own: averages and distances against plain tensors; what is refused."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest
import torch
import torch.distributed as dist

from dlrm_torchrec.sharding.node_local import Nodes
from tests.distributed import run_ranks

CPU = torch.device("cpu")
WEIGHT, DENSE = "model.sparse_arch.embedding_bags.t.weight", "model.over_arch.0.weight"
MOMENT = f"{WEIGHT}/t.momentum1"


def tensors_of(node: int) -> dict[str, dict[str, torch.Tensor]]:
    """What one node would have trained."""
    generator = torch.Generator().manual_seed(node)
    return {
        "model": {WEIGHT: torch.randn(8, 4, generator=generator), DENSE: torch.randn(8, generator=generator)},
        "optimizer": {MOMENT: torch.rand(8, generator=generator)},
    }


def all_averaged(sizes: list[int]) -> list[tuple[Any, ...]]:
    return [averaged(size) for size in sizes]


def averaged(size: int) -> tuple[Any, ...]:
    """Place and group of this rank; distances; its rows of its node's tensors after an average."""
    nodes = Nodes(dist.get_rank(), dist.get_world_size(), size=size, local_size=dist.get_world_size(), device=CPU)
    state = {
        part: {name: tensor.chunk(size)[nodes.place].clone() for name, tensor in tensors.items()}
        for part, tensors in tensors_of(nodes.number).items()
    }
    before = nodes.distance(state)
    nodes.average(state)
    return (nodes.number, nodes.place), dist.get_process_group_ranks(nodes.env.process_group), before, state


def test_averages_and_distances_are_those_of_plain_tensors() -> None:
    sizes = [1, 2]
    by_rank = run_ranks(4, all_averaged, sizes)
    for size, *found in zip(sizes, *by_rank, strict=True):
        check(size, found)


def check(size: int, found: list[tuple[Any, ...]]) -> None:
    """Checks the results of the four ranks for nodes of ``size`` ranks."""
    states = [tensors_of(node) for node in range(4 // size)]
    weights = torch.stack([state["model"][WEIGHT] for state in states]).double()
    moments = torch.stack([state["optimizer"][MOMENT] for state in states])
    pairs = [(a - b).square().sum() for a, b in combinations(weights, 2)]
    distance, norm = torch.stack(pairs).mean().sqrt(), weights.square().sum((1, 2)).mean().sqrt()
    for rank, ((number, place), ranks, before, state) in enumerate(found):
        assert (number, place) == divmod(rank, size)
        assert ranks == list(range(number * size, (number + 1) * size))
        assert before["distance"] == pytest.approx(float(distance), rel=1e-6)
        assert before["relative_distance"] == pytest.approx(float(distance / norm), rel=1e-6)
        for mean, whole in ((state["model"][WEIGHT], weights), (state["optimizer"][MOMENT], moments)):
            expected = whole.mean(0).chunk(size)[place]
            torch.testing.assert_close(mean, expected.float(), rtol=0, atol=2e-6)  # sums of 4 numbers of at most 8
        assert state["model"][DENSE].equal(states[number]["model"][DENSE].chunk(size)[place])


def test_nodes_are_whole() -> None:
    with pytest.raises(ValueError, match="ranks of a node must divide the 4 ranks: got 3; choose a divisor"):
        Nodes(0, 4, size=3, local_size=4, device=CPU)
