"""Metrics against float64 references, and over unequal ranks."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrm_torchrec.datasets.batch import Batch
from dlrm_torchrec.train.metrics.binary import ranking_metrics
from dlrm_torchrec.train.metrics.gates import TrainingError
from dlrm_torchrec.train.metrics.labels import evaluate
from dlrm_torchrec.train.task import BinaryRankingTask
from tests.distributed import here, run_ranks


def reference(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Straight from the definitions, in float64; AUC over all pairs."""
    p = 1 / (1 + np.exp(-logits))
    positive, negative = p[labels == 1], p[labels == 0]
    above = (positive[:, None] > negative[None, :]).mean() + 0.5 * (positive[:, None] == negative[None, :]).mean()
    logloss = -np.mean(labels * np.log(p) + (1 - labels) * np.log(1 - p))
    base = labels.mean()
    return {
        "auc": above,
        "logloss": logloss,
        "ne": logloss / -(base * math.log(base) + (1 - base) * math.log(1 - base)),
        "calibration": p.sum() / labels.sum(),
        "accuracy": ((p > 0.5) == (labels == 1)).mean(),
    }


def draw(seed: int, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, generator=generator).round(decimals=1)  # with ties
    labels = (torch.rand(rows, generator=generator) < torch.sigmoid(logits)).float()
    return logits, labels


@pytest.mark.parametrize("seed", range(5))
def test_metrics_equal_their_definitions(seed: int) -> None:
    logits, labels = draw(seed, 1000)
    found = ranking_metrics(logits, labels)
    for name, value in reference(logits.double().numpy(), labels.double().numpy()).items():
        assert found[name] == pytest.approx(value, rel=1e-6), name


def test_saturated_logits_keep_their_order() -> None:
    logits = torch.tensor([30.0, 31.0, 20.0, 33.0, 10.0, 9.0])
    labels = torch.tensor([0.0, 1.0, 0.0, 1.0, 1.0, 0.0])
    assert ranking_metrics(logits, labels)["auc"] == pytest.approx(
        reference(logits.double().numpy(), labels.double().numpy())["auc"]
    )


class Echo(BinaryRankingTask):
    """A task whose logits are the dense column of the batch."""

    def forward(self, batch: Any) -> Any:
        return torch.zeros(()), (torch.zeros(()), batch.dense_features[:, 0], batch.num_rows)


def _evaluate_share(logits: torch.Tensor, labels: torch.Tensor, cuts: list[int], learned: bool) -> dict[str, float]:
    world = here()
    padding = torch.full((3,), 99.0)
    mine = slice(cuts[world.rank], cuts[world.rank + 1])
    batch = Batch(
        dense_features=torch.cat([logits[mine], padding])[:, None],
        sparse_features=KeyedJaggedTensor.empty(),
        labels=torch.cat([labels[mine], padding]),
        num_rows=mine.stop - mine.start,
        global_rows=len(logits),
    )
    return evaluate(Echo(nn.Identity(), world.size), [batch], world, learned=learned)


@pytest.mark.parametrize("cuts", [[0, 137, 200], [0, 200, 200]])
def test_evaluation_counts_every_real_row_of_unequal_ranks_once(cuts: list[int]) -> None:
    logits, labels = draw(7, 200)
    whole = ranking_metrics(logits, labels)
    for found in run_ranks(2, _evaluate_share, logits, labels, cuts, False):
        assert found == pytest.approx(whole, rel=1e-12)
        assert (found["auc"], found["samples"]) == (whole["auc"], 200)


GATES = [
    (torch.randn(1000), torch.zeros(1000), False, "validation labels must have both classes: got 0 positives in 1000"),
    (torch.full((4,), math.nan), torch.tensor([0.0, 1, 0, 1]), False, "logits must be finite: got NaN or infinity"),
    (torch.ones(1000), torch.arange(1000) % 2.0, True, "logits must differ between rows: got 1 for all; look at"),
    (torch.randn(20_000), torch.arange(20_000) % 2.0, True, r"must differ from 0.5 after the warm-up: got 0\.\d+ \("),
    (torch.randn(0), torch.randn(0), False, "validation split must hold rows: got none; look at the splits"),
]


@pytest.mark.parametrize(("logits", "labels", "learned", "message"), GATES)
def test_a_broken_model_is_named_on_every_rank(
    logits: torch.Tensor, labels: torch.Tensor, learned: bool, message: str
) -> None:
    half = len(logits) // 2
    with pytest.raises(RuntimeError, match=message):
        run_ranks(2, _evaluate_share, logits, labels, [0, half, len(logits)], learned)


def test_gates_wait_until_the_model_must_have_learned() -> None:
    logits, labels = torch.ones(1000), torch.arange(1000) % 2.0
    assert run_ranks(1, _evaluate_share, logits, labels, [0, 1000], False)[0]["auc"] == 0.5


def test_error_is_a_value_error() -> None:
    assert issubclass(TrainingError, ValueError)
