"""The learning rate: its shape, and that fused and dense parameters really train with it."""

from __future__ import annotations

import pytest
import torch
from torchrec.optim.keyed import KeyedOptimizerWrapper

from dlrm_torchrec.train.config import Schedule
from dlrm_torchrec.train.schedule import ScheduledLearningRate


def test_mlperf_shape() -> None:
    schedule = Schedule(warmup_steps=2750, decay_start=49_315, decay_steps=27_772, power=2)
    assert schedule.factor(0, 75_000) == 1 / 2750
    assert schedule.factor(2749, 75_000) == schedule.factor(2750, 75_000) == schedule.factor(49_315, 75_000) == 1.0
    assert schedule.factor(49_315 + 13_886, 75_000) == pytest.approx(0.25)
    assert schedule.factor(49_315 + 27_772, 75_000) == schedule.factor(10**9, 75_000) == 0.0


def test_default_is_constant() -> None:
    assert {Schedule().factor(step, 100) for step in range(100)} == {1.0}


def test_decay_until_the_end_of_the_run() -> None:
    schedule = Schedule(warmup_steps=10, decay_start=20, decay_steps=-1, power=1)
    assert [schedule.factor(step, 120) for step in (20, 70, 119)] == pytest.approx([1.0, 0.5, 0.01])


def test_decay_inside_the_warm_up_is_refused() -> None:
    with pytest.raises(ValueError, match="decay_start must not lie inside the warm-up of 9 steps: got 5; raise it"):
        Schedule(warmup_steps=9, decay_start=5, decay_steps=3)


def test_every_group_keeps_its_own_base() -> None:
    weights = {name: torch.nn.Parameter(torch.zeros(1)) for name in "ab"}
    groups = [{"params": [weights["a"]], "lr": 1.0}, {"params": [weights["b"]], "lr": 0.1}]
    optimizer = KeyedOptimizerWrapper(weights, lambda _: torch.optim.SGD(groups))
    rates = ScheduledLearningRate(optimizer, Schedule(warmup_steps=2), 10)
    rates.set(0)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.05]
    rates.set(1)
    assert [group["lr"] for group in optimizer.param_groups] == [1.0, 0.1]


def test_settled_only_after_the_warm_up() -> None:
    schedule = Schedule(warmup_steps=100)
    assert [schedule.settled(step) for step in (100, 299, 300)] == [False, False, True]


def test_falls_to_a_tenth_at_each_step_that_is_named() -> None:
    schedule = Schedule(warmup_steps=2, falls=(10, 30))
    assert [schedule.factor(step, 50) for step in (0, 2, 9, 10, 29, 30, 49)] == pytest.approx(
        [0.5, 1, 1, 0.1, 0.1, 0.01, 0.01]
    )
    with pytest.raises(
        ValueError, match=r"steps at which the learning rate falls must be at least 1: got \(0,\); name"
    ):
        Schedule(falls=(0,))
