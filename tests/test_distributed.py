"""The multi-process helper: results by rank, and a failure, a death and a hang are each told apart and explained."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time

import pytest
import torch
import torch.distributed as dist

from tests.distributed import run_ranks


def summed(values: list[torch.Tensor]) -> tuple[int, str, torch.Tensor]:
    mine = values[dist.get_rank()].clone()
    dist.all_reduce(mine)
    return dist.get_rank(), os.environ["LOCAL_RANK"] + "/" + os.environ["LOCAL_WORLD_SIZE"], mine


def fail_on_rank_one() -> None:
    if dist.get_rank() == 1:
        raise KeyError("the culprit")
    dist.barrier()


def die_on_rank_one() -> None:
    if dist.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def sleep_on_rank_one() -> None:
    if dist.get_rank() == 1:
        time.sleep(60)


def test_results_come_by_rank() -> None:
    values = [torch.tensor([1.0, 2.0]), torch.tensor([10.0, 20.0]), torch.tensor([100.0, 200.0])]
    results = run_ranks(3, summed, values)
    assert [rank for rank, _, _ in results] == [0, 1, 2]
    assert [local for _, local, _ in results] == ["0/3", "1/3", "2/3"]
    for _, _, total in results:
        torch.testing.assert_close(total, torch.tensor([111.0, 222.0]))


def join_oneself() -> int:
    assert not dist.is_initialized()
    dist.init_process_group("gloo")
    return dist.get_world_size()


def test_a_function_may_join_by_itself() -> None:
    assert run_ranks(2, join_oneself, join=False) == [2, 2]


def test_failure_names_rank_and_line() -> None:
    with pytest.raises(RuntimeError, match=r"(?s)rank 1 failed:.*in fail_on_rank_one.*KeyError: 'the culprit'"):
        run_ranks(2, fail_on_rank_one)


def test_death_names_rank_and_signal() -> None:
    with pytest.raises(RuntimeError, match="rank 1 died with exit code -9"):
        run_ranks(2, die_on_rank_one)


def test_hang_names_only_the_hanging_rank_and_its_line() -> None:
    run_ranks(2, os.getpid)  # the imports of the fork server are not part of the hang
    with pytest.raises(
        TimeoutError, match=r"(?s)^rank 1 still running after 5.0 s\nrank 1 is at.*in sleep_on_rank_one"
    ):
        run_ranks(2, sleep_on_rank_one, timeout_s=5.0)
    assert multiprocessing.active_children() == []
