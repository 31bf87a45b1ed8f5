"""Metrics and tensor names of nodes, which are models that share dense parameters but not tables."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torchrec.optim.keyed import CombinedOptimizer

from dlrm_torchrec.table_names import table_of
from dlrm_torchrec.train.checkpoints.state import run_tensors
from dlrm_torchrec.train.metrics.binary import ranking_metrics
from dlrm_torchrec.train.metrics.gates import check_learned, check_scores
from dlrm_torchrec.train.metrics.scores import Scores, dealt, predict
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

    scores = predict(model, batches, world)
    per_node, rows = world.size // nodes, len(scores.labels)
    # the ranks with the same rows deal them among themselves, so that each gets all nodes' logits of its share
    counts = torch.arange(rows, device=world.device)
    part = counts * nodes // max(1, rows) * per_node + world.rank % per_node
    columns = [each for each in scores[:3] if each is not None]
    (columns,) = dealt(columns, part, 1, scores.group)
    logits, labels, *weights = (each.view(nodes, -1) for each in columns)
    return _measure(Scores(logits.T, labels.T, weights[0][0] if weights else None, scores.group), learned=learned)


def _measure(scores: Scores, *, learned: bool) -> dict[str, float]:
    """The metrics of N rows with the logits of every node, (N, nodes), and their label once per node, likewise."""
    singles = [scores.of_label(node) for node in range(scores.labels.shape[1])]
    for single in singles:
        check_scores(single)
    ensemble = torch.stack([torch.sigmoid(single.outputs.double()) for single in singles]).mean(0)
    measured = ranking_metrics(torch.logit(ensemble), *singles[0][1:])
    for node, single in enumerate(singles):
        metrics = ranking_metrics(*single)
        if learned:
            check_learned(single, metrics)
        measured |= {f"node{node}/{name}": metrics[name] for name in ("auc", "logloss")}
    return measured


def node_tensors(node: int, model: nn.Module, optimizer: CombinedOptimizer) -> dict[str, dict[str, Any]]:
    """``run_tensors`` for a checkpoint of all nodes, with a different name for each node's tables."""
    return {
        part: {f"node{node}.{name}" if table_of(name) else name: tensor for name, tensor in tensors.items()}
        for part, tensors in run_tensors(model, optimizer).items()
    }
