"""Models that share dense parameters but not tables: how good each one is, and all together; their tensors' names."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torchrec.optim.keyed import CombinedOptimizer

from dlrm_torchrec.train.checkpoints.state import run_tensors
from dlrm_torchrec.train.metrics.binary import on_all_ranks, predict, ranking_metrics
from dlrm_torchrec.train.metrics.gates import check_learned, check_scores
from dlrm_torchrec.train.task import RankingBatch
from dlrm_torchrec.train.world import World


def evaluate_nodes(
    model: nn.Module, batches: Iterable[RankingBatch], world: World, nodes: int, *, learned: bool
) -> dict[str, float]:
    """Metrics of the nodes' ensemble, whose probability is the mean of theirs, and as ``node<number>/`` of each.

    The ranks of a node must share all rows among them, every node's in the same way. Otherwise as ``evaluate``.
    """

    def measure(scores: torch.Tensor) -> dict[str, float]:
        logits, labels = scores.view(2, nodes, -1)
        return _measure(logits, labels[0], learned)

    return on_all_ranks(predict(model, batches, world), measure, world)


def _measure(logits: torch.Tensor, labels: torch.Tensor, learned: bool) -> dict[str, float]:
    for single in logits:
        check_scores(single, labels)
    measured = ranking_metrics(torch.logit(torch.sigmoid(logits.double()).mean(0)), labels)
    for node, single in enumerate(logits):
        metrics = ranking_metrics(single, labels)
        if learned:
            check_learned(single, metrics)
        measured |= {f"node{node}/{name}": metrics[name] for name in ("auc", "logloss")}
    return measured


def node_tensors(node: int, model: nn.Module, optimizer: CombinedOptimizer) -> dict[str, dict[str, Any]]:
    """``run_tensors`` for a checkpoint of all nodes: tables of different nodes have different names."""
    return {
        part: {f"node{node}.{name}" if ".embedding_bags." in name else name: tensor for name, tensor in tensors.items()}
        for part, tensors in run_tensors(model, optimizer).items()
    }
