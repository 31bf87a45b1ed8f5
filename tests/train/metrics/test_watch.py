"""What a run says before its first step, and its warnings: each at once, once, in one sentence."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import pytest
import torch

from dlrm_torchrec.train.config import Schedule
from dlrm_torchrec.train.metrics.watch import Watch


@dataclass
class Batch:
    dense_features: torch.Tensor
    num_rows: int


@dataclass(frozen=True)
class Data:
    rows: dict[str, int] = field(default_factory=dict)
    positives: dict[str, int] = field(default_factory=dict)
    users: dict[str, int] = field(default_factory=dict)
    again: dict[str, int] = field(default_factory=dict)
    samples: int = 0
    dense_names: list[str] = field(default_factory=list)


def watching(data: Data, warmup: int = 0) -> tuple[Watch, list[str]]:
    said: list[str] = []
    return Watch(said.append, Schedule(warmup_steps=warmup), data), said


def test_rows_positives_and_steps_are_said_first() -> None:
    watch, said = watching(Data({"train": 8_000, "val": 2_000}, {"train": 1_640, "val": 1}))
    watch.start(0, 125)
    watch.start(25, 125)
    assert said == [
        "train: 8,000 rows, 1,640 positive (20.50%); val: 2,000 rows, 1 positive (0.05%); 125 steps",
        "train: 8,000 rows, 1,640 positive (20.50%); val: 2,000 rows, 1 positive (0.05%); 125 steps, 25 of them done",
    ]
    watch, said = watching(Data({"train": 5}))  # positives were not counted
    watch.start(0, 1)
    assert said == ["train: 5 rows; 1 steps"]
    counted = Data({"train": 8_000, "val": 5}, {"train": 2_000}, {"train": 1_500, "val": 4}, {"val": 2_100}, samples=7)
    watch, said = watching(counted)
    watch.start(0, 9)
    assert said == [
        "train: 8,000 candidates of 1,500 users, 2,000 positive (25.00%); val: 5 candidates of 4 users, without "
        "2,100 whose item the user had before; 9 steps"
    ]


def test_fewer_steps_than_the_warm_up_are_warned_of() -> None:
    watch, said = watching(Data(), warmup=50)
    watch.start(0, 50)
    assert len(said) == 1
    watch.start(0, 4)
    assert said[2].startswith("warning: the run has 4 steps, fewer than the 50 of the warm-up")


def batches(columns: torch.Tensor, size: int) -> list[Batch]:
    padded = [torch.nn.functional.pad(part, (0, 0, 0, 3), value=1e9) for part in columns.split(size)]
    return [Batch(part, len(part) - 3) for part in padded]


@pytest.mark.parametrize("size", [64, 1024, 3000])
def test_huge_and_constant_columns_are_named_and_batches_pass_unchanged(size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    columns = torch.randn(3_000, 4, generator=generator)
    columns[:, 1] = 1.7e9 + 1e5 * columns[:, 1]  # epoch seconds
    columns[:, 2] = 3.0
    columns[0, 3] = -20_000.0
    watch, said = watching(Data(dense_names=["price", "ts", "version", "user.age"]))
    given = batches(columns, size)
    assert all(one is other for one, other in zip(watch.columns(iter(given)), given, strict=True))
    assert len(said) == 3
    assert any(line.startswith("warning: dense column 'ts' has values up to 1.7e+09") for line in said)
    assert any(line.startswith("warning: dense column 'user.age' has values up to 2e+04") for line in said)
    assert any(line.startswith("warning: dense column 'version' is 3 in all of the first") for line in said)


def test_ordinary_columns_and_rare_indicators_pass() -> None:
    columns = torch.zeros(2_000, 2)
    columns[:, 0] = torch.linspace(-9_999, 9_999, 2_000)
    columns[900, 1] = 1.0  # one in a thousand rows
    watch, said = watching(Data(dense_names=["a", "missing"]))
    list(watch.columns(iter(batches(columns, 100))))
    assert said == []
    list(watch.columns(iter(batches(torch.zeros(500, 2), 100))))  # too few rows to tell
    assert said == []


def test_a_loss_worse_than_the_base_rate_is_warned_of_after_the_warm_up() -> None:
    share = 0.3
    entropy = -share * math.log(share) - (1 - share) * math.log(1 - share)
    watch, said = watching(Data({"train": 1_000}, {"train": 300}), warmup=10)
    watch.loss(1, 20, 5.0)  # partly in the warm-up
    watch.loss(11, 20, entropy * 1.05)
    assert said == []
    watch.loss(21, 30, entropy * 1.2)
    watch.loss(31, 40, entropy * 1.2)
    assert len(said) == 1
    assert f"{entropy:.4g}, that of answering 30.00% for every row" in said[0]
    unknown, said = watching(Data({"train": 1_000}))
    unknown.loss(21, 30, 5.0)
    assert said == []


def test_a_normalised_entropy_above_1_is_warned_of_once_after_the_warm_up() -> None:
    watch, said = watching(Data(), warmup=10)
    watch.validation(10, {"val/ne": 3.9})
    watch.validation(20, {"val/ne": 0.99})
    watch.validation(20, {"train/loss": 3.0})
    assert said == []
    watch.validation(30, {"val/ne": 1.01})
    watch.validation(40, {"val/ne": 1.5})
    assert len(said) == 1
    assert said[0].startswith("warning: val/ne 1.010 at step 30 is above 1")
