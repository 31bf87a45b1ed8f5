"""Metrics and tensor names of nodes, which are models that share dense parameters but not tables."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torchrec.optim.keyed import CombinedOptimizer

from dlrm_torchrec.train.checkpoints.state import run_tensors
from dlrm_torchrec.train.metrics.binary import Scores, on_all_ranks, predict, ranking_metrics
from dlrm_torchrec.train.metrics.gates import check_learned, check_scores
from dlrm_torchrec.train.task import RankingBatch
from dlrm_torchrec.train.world import World


def evaluate_nodes(
    model: nn.Module, batches: Iterable[RankingBatch], world: World, nodes: int, *, learned: bool
) -> dict[str, float]:
    """Metrics of the ensemble, whose probability is the mean over the nodes, and of each node as ``node<number>/...``.

    The ranks of a node must split all rows among themselves, in the same way in every node. Everything else is as in
    ``evaluate``.

    Args:
        model: the model of this rank's node
        batches: this rank's part of the rows
        world: all ranks
        nodes: the number of nodes
        learned: whether the model has had time to learn, so that constant logits or an AUC of 0.5 are an error
    """

    def measure(scores: Scores) -> dict[str, float]:
        logits, labels = (each.view(nodes, -1) for each in (scores.outputs, scores.labels))
        weights = None if scores.weights is None else scores.weights.view(nodes, -1)[0]
        return _measure(Scores(logits, labels[0], weights), learned=learned)

    return on_all_ranks(predict(model, batches, world), measure, world)


def _measure(scores: Scores, *, learned: bool) -> dict[str, float]:
    """Metrics of logits (nodes, N) of the same N rows."""
    logits, labels, weights = scores
    for single in logits:
        check_scores(single, labels)
    measured = ranking_metrics(torch.logit(torch.sigmoid(logits.double()).mean(0)), labels, weights)
    for node, single in enumerate(logits):
        metrics = ranking_metrics(single, labels, weights)
        if learned:
            check_learned(single, metrics)
        measured |= {f"node{node}/{name}": metrics[name] for name in ("auc", "logloss")}
    return measured


def node_tensors(node: int, model: nn.Module, optimizer: CombinedOptimizer) -> dict[str, dict[str, Any]]:
    """``run_tensors`` for a checkpoint of all nodes, with a different name for each node's tables."""
    return {
        part: {f"node{node}.{name}" if ".embedding_bags." in name else name: tensor for name, tensor in tensors.items()}
        for part, tensors in run_tensors(model, optimizer).items()
    }
