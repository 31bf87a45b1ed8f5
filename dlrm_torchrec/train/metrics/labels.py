"""Metrics of every label of a data set, binary or numbers, computed exactly over all ranks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import nn

from dlrm_torchrec.train.metrics.binary import binary_metrics
from dlrm_torchrec.train.metrics.gates import TrainingError
from dlrm_torchrec.train.metrics.regression import regression_metrics
from dlrm_torchrec.train.metrics.scores import Scores, predict
from dlrm_torchrec.train.task import RankingBatch, Target, task_of
from dlrm_torchrec.train.world import World


def evaluate(
    model: nn.Module, batches: Iterable[RankingBatch], world: World, *, learned: bool, one_class: bool = False
) -> dict[str, float]:
    """``label_metrics`` of a task over all real rows of all ranks; every rank gets the same dictionary.

    ``learned`` says that the model has had time to learn, so constant logits or an AUC of 0.5 are an error.
    ``one_class`` allows rows whose labels are all alike. All ranks must get the same number of batches.
    """
    task = task_of(model)
    scores = predict(model, batches, world)
    return label_metrics(scores, labels=task.labels, target=task.target, learned=learned, one_class=one_class)


def label_metrics(
    scores: Scores, *, labels: Sequence[str], target: Target, learned: bool, one_class: bool = False
) -> dict[str, float]:
    """The metrics of the main label, the first; if there are several labels, also ``<label>/<metric>`` for each.

    Rows in which a label is unknown do not count for it. All ranks of the scores' group get the same metrics. Raises
    TrainingError like ``binary_metrics``.

    Args:
        scores: outputs, labels and weights of rows
        labels: the names of the labels
        target: whether the labels are 0 or 1, or numbers
        learned: whether the model has had time to learn, so that constant logits or an AUC of 0.5 are an error
        one_class: whether a binary label may be the same in all rows, and so has no AUC and no NE
    """
    several = len(labels) > 1
    found: dict[str, dict[str, float]] = {}
    for number, name in enumerate(labels):
        single = scores.of_label(number)
        try:
            if target == "number":
                found[name] = regression_metrics(*single)
            else:
                found[name] = binary_metrics(single, learned=learned, one_class=one_class)
        except TrainingError as error:
            raise TrainingError(f"label {name!r}: {error}" if several else str(error)) from error
    named = {f"{name}/{metric}": value for name, own in found.items() for metric, value in own.items()}
    return found[labels[0]] | (named if several else {})
