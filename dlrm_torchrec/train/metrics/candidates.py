"""Metrics of the candidates that users got: those of their labels, and GAUC by user."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from dlrm_torchrec.train.metrics.grouped_auc import grouped_auc, noting_ids
from dlrm_torchrec.train.metrics.labels import label_metrics
from dlrm_torchrec.train.metrics.scores import predict
from dlrm_torchrec.train.task import RankingBatch, task_of
from dlrm_torchrec.train.world import World


def evaluate(
    model: nn.Module, batches: Iterable[RankingBatch], world: World, *, learned: bool, one_class: bool = False
) -> dict[str, float]:
    """``label_metrics`` of a task over all candidates of all ranks, and ``grouped_auc`` by user; alike on every rank.

    ``learned`` says that the model has had time to learn, so constant logits or an AUC of 0.5 are an error.
    ``one_class`` allows labels that are all alike, which have no GAUC. All ranks must get the same number of batches.
    """
    task = task_of(model)
    users: list[torch.Tensor] = []
    scores = predict(model, noting_ids(batches, "", users), world)
    metrics = label_metrics(scores, labels=task.labels, target=task.target, learned=learned, one_class=one_class)
    return metrics | (grouped_auc(scores, torch.cat(users)) if "auc" in metrics else {})
