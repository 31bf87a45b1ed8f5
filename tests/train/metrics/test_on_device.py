"""Evaluation on the double of a GPU: the numbers of the CPU, no wait for a batch, and collectives on the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrm_torchrec.datasets.batch import Batch
from dlrm_torchrec.train.metrics import auc, grouped_auc
from dlrm_torchrec.train.metrics.labels import evaluate
from dlrm_torchrec.train.metrics.leave_one_out import evaluate_leave_one_out
from dlrm_torchrec.train.metrics.reliability import calibration_bins
from dlrm_torchrec.train.metrics.scores import predict
from dlrm_torchrec.train.nodes import evaluate_nodes
from dlrm_torchrec.train.task import BinaryRankingTask, RankingTask, RegressionTask
from dlrm_torchrec.train.world import World
from tests.device.double import META, Double
from tests.distributed import here, run_ranks

RANKS, BATCHES, ROWS, ROUND = 2, 6, 200, 400
Evaluation = Callable[[list[Batch], World, Double | None], Any]


class Fixed(nn.Module):
    """Outputs that are the dense features, one for each label."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, dense: torch.Tensor, _sparse: KeyedJaggedTensor) -> torch.Tensor:
        return dense


class Sent(Batch):
    """A batch that is moved as the pipelines move it: while the host goes on."""

    def to(self, device: torch.device, non_blocking: bool = False) -> Batch:  # TorchRec's
        assert non_blocking, "a batch must be moved while the host goes on"
        return super().to(device, non_blocking)


def batches(labels: int, *, numbers: bool = False, users: bool = False) -> list[Batch]:
    """Random batches; the last one has padding. With ``users``, one row of each of 20 is positive."""
    made = []
    for number in range(BATCHES):
        rows = ROWS if number < BATCHES - 1 else ROWS - 60
        outputs = torch.randn(ROWS, labels).round(decimals=1)
        truth = torch.randn(ROWS, labels) if numbers else (torch.rand(ROWS, labels) < torch.sigmoid(outputs)).float()
        if labels > 1:
            truth[torch.rand(ROWS, labels) < 0.2] = torch.nan
        ids = torch.arange(rows) % 20 + 100 * number + 1000 * here().rank
        if users:
            truth = (torch.arange(ROWS) < 20).float()[:, None]
        made.append(
            Sent(
                dense_features=outputs,
                sparse_features=KeyedJaggedTensor(
                    ["user"], ids, lengths=(torch.arange(ROWS) < rows).int(), length_per_key=[rows], stride=ROWS
                ),
                labels=truth if labels > 1 else truth.squeeze(1),
                num_rows=rows,
                global_rows=rows * RANKS,
                weights=None if users or labels > 1 else torch.rand(ROWS) + 0.5,
            )
        )
    return made


def watched(each: list[Batch], device: Double | None) -> Iterator[Batch]:
    """The batches; what was waited for from the first to the last one must be copies that the host goes on with."""
    yield from each
    if device is not None:
        waits = [wait for wait in device.waits if wait.operator != "copy to the device"]
        assert not waits, f"evaluation waits for the device in every batch: {waits}"


def task(kind: type[RankingTask], *labels: str) -> RankingTask:
    made = kind(Fixed(), RANKS, labels)
    made.loss = lambda outputs, *_: outputs.sum()  # type: ignore[method-assign]
    return made


def of_labels(each: list[Batch], world: World, device: Double | None) -> Any:
    return evaluate(task(BinaryRankingTask, "a", "b"), watched(each, device), world, learned=True)


def of_numbers(each: list[Batch], world: World, device: Double | None) -> Any:
    return evaluate(task(RegressionTask, "a"), watched(each, device), world, learned=False)


def of_users(each: list[Batch], world: World, device: Double | None) -> Any:
    return evaluate_leave_one_out(
        task(BinaryRankingTask, "a"), watched(each, device), world, user="user", learned=False
    )


def of_nodes(each: list[Batch], world: World, device: Double | None) -> Any:
    return evaluate_nodes(task(BinaryRankingTask, "a"), watched(each, device), world, RANKS, learned=False)


def of_groups(each: list[Batch], world: World, device: Double | None) -> Any:
    ids: list[torch.Tensor] = []
    noted = grouped_auc.noting_ids(watched(each, device), "user", ids)
    scores = predict(task(BinaryRankingTask, "a"), noted, world)
    return grouped_auc.grouped_auc(scores, torch.cat(ids)), calibration_bins(*scores.of_label(0))


CASES: list[tuple[Evaluation, dict[str, Any]]] = [
    (of_labels, {"labels": 2}),
    (of_numbers, {"labels": 1, "numbers": True}),
    (of_users, {"labels": 1, "users": True}),
    (of_nodes, {"labels": 1}),
    (of_groups, {"labels": 1}),
]


def refusing_the_host(collective: Callable[..., Any]) -> Callable[..., Any]:
    """The collective, which takes tensors of the device alone, as NCCL does."""

    def checked(*args: Any, **kwargs: Any) -> Any:
        tensors = [each for arg in args for each in (arg if isinstance(arg, list) else [arg])]
        assert all(each.device == META for each in tensors if isinstance(each, torch.Tensor)), collective.__name__
        return collective(*args, **kwargs)

    return checked


def evaluated(seed: int) -> dict[str, tuple[Any, Any]]:
    """Each evaluation of random batches, on the CPU and on the device."""
    world = here()
    return {evaluation.__name__: _evaluated(evaluation, drawn, world, seed) for evaluation, drawn in CASES}


def _evaluated(evaluation: Evaluation, drawn: dict[str, Any], world: World, seed: int) -> tuple[Any, Any]:
    torch.manual_seed(seed if evaluation is of_nodes else seed + world.rank)  # nodes evaluate the same rows
    each = batches(**drawn)
    with pytest.MonkeyPatch.context() as patch:
        for module in (auc, grouped_auc):
            patch.setattr(module, "ROUND_ROWS", ROUND)
        on_cpu = evaluation(each, world, None)
        for module in (auc, grouped_auc):
            patch.setattr(module, "ROUND_ROWS", ROUND // 8)  # a GPU sorts eight times as many at once
        for name in ("all_reduce", "all_gather", "all_to_all_single"):
            patch.setattr(dist, name, refusing_the_host(getattr(dist, name)))
        with Double() as device:
            return on_cpu, evaluation(each, replace(world, device=META), device)


def test_a_device_evaluates_as_the_cpu_does() -> None:
    seed = int(torch.randint(1 << 30, ()))
    for found in run_ranks(RANKS, evaluated, seed):
        assert len(found) == len(CASES)
        for name, (on_cpu, on_device) in found.items():
            assert on_device == on_cpu, name
