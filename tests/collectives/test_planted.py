"""Faults that one rank of 16 makes, each of which must be found and told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from dlrm_torchrec.datasets.batch import Batch
from dlrm_torchrec.train.checkpoints.checkpoint import Checkpoints
from dlrm_torchrec.train.checkpoints.progress import Progress
from dlrm_torchrec.train.stop import StopRequest
from dlrm_torchrec.train.world import World
from tests.collectives.meeting import DisagreementError
from tests.collectives.ranks import here, walk
from tests.collectives.walked import GPU, PER_HOST, RANKS, walk_recipe

ODD = 5  # the rank that is at fault


def steps(world: World, fault: str) -> float:
    """Two collectives of all ranks, one of each host, and one whose lengths differ by rank."""
    planted = fault if world.rank == ODD else ""
    host, _ = dist.new_subgroups_by_enumeration(torch.arange(world.size).view(-1, world.local_size).tolist())
    if planted == "ends early":
        return 0.0
    total = torch.ones(
        4 if planted == "another size" else 3,
        dtype=torch.float64 if planted == "another dtype" else torch.float32,
        device="cpu" if planted == "the host's memory" else world.device,
    )
    flag = torch.ones(1, device=world.device if planted == "the device's memory" else "cpu")
    lengths = [world.rank + other for other in range(world.size)]
    sent = torch.ones(sum(lengths), device=world.device)
    expected = [length + (place == 2 and planted == "another length") for place, length in enumerate(lengths)]
    received = torch.empty(sum(expected), device=world.device)
    reduction = dist.ReduceOp.MAX if planted == "another reduction" else dist.ReduceOp.SUM
    collectives: list[Callable[[], object]] = [
        partial(dist.all_reduce, total, reduction),
        partial(dist.broadcast, flag, src=1 if planted == "another root" else 0, group=world.control),
        partial(dist.all_reduce, torch.ones(2, device=world.device), group=host),
        partial(dist.all_to_all_single, received, sent, expected, lengths),
    ]
    if planted == "skips one":
        del collectives[2]
    if planted == "swaps two":
        collectives[1:3] = collectives[2:0:-1]
    if planted == "another kind":
        collectives[0] = partial(dist.broadcast, total, src=0)
    for collective in collectives:
        collective()
    return float(total[0])


def test_ranks_that_agree_get_the_sums_of_all() -> None:
    totals, meetings = walk(RANKS, partial(steps, fault=""), local_size=PER_HOST, device=GPU)
    assert totals == [RANKS] * RANKS
    kinds = [[(issued.kind, issued.backend, len(issued.ranks)) for issued in rank] for rank in meetings.record]
    every = [("allreduce", "nccl", 16), ("broadcast", "gloo", 16), ("allreduce", "nccl", 8), ("alltoall", "nccl", 16)]
    assert kinds == [every] * RANKS


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (
            "skips one",
            r"ranks 5 wait in alltoall .*ranks 0,1,2,3,4,6,7 wait in allreduce|ranks 0,1,.* wait in allreduce",
        ),
        ("swaps two", r"ranks 5 wait in allreduce of ranks 0,1,2,3,4,5,6,7 at tests/collectives/test_planted.py:\d+"),
        ("ends early", r"wait in allreduce .*; ranks 5 have ended"),
        ("another kind", r"must agree on the kind: got allreduce on .*, broadcast on ranks 5 at"),
        ("another dtype", r"must agree on the dtype: got .*float32.*float64'\] on ranks 5 at"),
        ("another size", r"must agree on the size: got \[3\] on .*, \[4\] on ranks 5 at"),
        ("another reduction", r"must agree on the reduction or root: got SUM on .*, MAX on ranks 5 at"),
        ("another root", r"must agree on the reduction or root: got 0 on .*, 1 on ranks 5 at"),
        ("another length", r"rank 2 sends 7 numbers to rank 5, which expects 8: alltoall at"),
        ("the host's memory", r"rank 5 hands nccl a tensor in the host's memory: allreduce at"),
        ("the device's memory", r"rank 5 hands gloo a tensor in the device's memory: broadcast at"),
    ],
)
def test_a_planted_fault_is_told(fault: str, told: str) -> None:
    with pytest.raises(DisagreementError, match=told):
        walk(RANKS, partial(steps, fault=fault), local_size=PER_HOST, device=GPU)


def one_rank_saves_by_its_own_clock(_: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    due = Checkpoints.due

    def asked(checkpoints: Checkpoints, progress: Progress, *, overdue: bool) -> bool:
        return here().rank == 1 or due(checkpoints, progress, overdue=overdue)

    monkeypatch.setattr(Checkpoints, "due", asked)


def one_rank_evaluates_less(recipe: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate = recipe.evaluate

    def evaluated(model: nn.Module, batches: Iterator[Batch], *args: Any, **kwargs: Any) -> dict[str, float]:
        metrics: dict[str, float] = evaluate(model, islice(batches, 2 if here().rank == 1 else None), *args, **kwargs)
        return metrics

    monkeypatch.setattr(recipe, "evaluate", evaluated)


def one_rank_stops_alone(_: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    agreed = StopRequest.agreed
    monkeypatch.setattr(StopRequest, "agreed", lambda stop: here().rank == 1 or agreed(stop))


@pytest.mark.parametrize("plant", [one_rank_saves_by_its_own_clock, one_rank_evaluates_less, one_rank_stops_alone])
def test_a_fault_planted_in_a_recipe_is_told(
    plant: Callable[[ModuleType, pytest.MonkeyPatch], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DisagreementError, match=r"ranks 1\b.* at "):
        walk_recipe("train_dlrm", tmp_path, size=2, before=lambda recipe: plant(recipe, monkeypatch))
