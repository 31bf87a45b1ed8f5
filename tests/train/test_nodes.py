"""Metrics of models that share rows: of each, and of the mean of their probabilities, in float64 by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dlrm_torchrec.train.nodes import evaluate_nodes
from tests.distributed import here, run_ranks

NODES, ROWS = 2, 101
LOGITS = np.random.default_rng(0).normal(size=(NODES, ROWS))
LABELS = np.random.default_rng(1).integers(0, 2, ROWS)


class Fixed(nn.Module):
    """A task that has scored every row already."""

    def forward(self, batch: Any) -> tuple[None, tuple[None, torch.Tensor, int]]:
        return None, (None, batch.logits, ROWS)


def evaluated() -> dict[str, float]:
    """The metrics with one rank per node and one row of padding."""
    world = here()
    batch = SimpleNamespace(
        logits=torch.tensor([*LOGITS[world.rank], 99.0]),
        labels=torch.tensor([*LABELS, 0.0]),
        num_rows=ROWS,
        weights=None,
    )
    batch.to = lambda *_, **__: batch
    return evaluate_nodes(Fixed(), [batch], world, NODES, learned=False)


def logloss(probabilities: np.ndarray) -> float:
    return -float(np.mean(LABELS * np.log(probabilities) + (1 - LABELS) * np.log(1 - probabilities)))


def test_nodes_and_their_ensemble() -> None:
    probabilities = 1 / (1 + np.exp(-LOGITS))
    for found in run_ranks(NODES, evaluated):
        assert found["samples"] == ROWS
        assert found["logloss"] == pytest.approx(logloss(probabilities.mean(0)), rel=1e-6)
        for node in range(NODES):
            assert found[f"node{node}/logloss"] == pytest.approx(logloss(probabilities[node]), rel=1e-6)
