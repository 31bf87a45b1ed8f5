"""Checks that stop a run which trains on garbage; each error says in one sentence what to look at."""

from __future__ import annotations

import math

import torch

from dlrm_torchrec.train.metrics.scores import Scores


class TrainingError(ValueError):
    """The run cannot continue; the message says what to look at."""


def check_loss(loss: float, first_step: int, last_step: int) -> None:
    """Raise TrainingError when the summed loss of the steps is not finite."""
    if not math.isfinite(loss):
        raise TrainingError(
            f"training loss must be finite: got {loss} between steps {first_step} and {last_step}; "
            "look at the learning rate, and look for huge or non-finite values in dense columns"
        )


def check_scores(scores: Scores, *, one_class: bool = False) -> None:
    """Raise TrainingError on every rank when metrics of these scores of one label would be meaningless.

    ``one_class`` allows labels that are all alike.
    """
    samples, positives, broken = map(int, scores.sums(lambda z, y, _: [torch.ones_like(z), y, ~z.isfinite()]))
    if samples == 0:
        raise TrainingError("validation split must hold rows: got none; look at the splits in dataset.json")
    if broken:
        raise TrainingError(
            "logits must be finite: got NaN or infinity in evaluation; look at the learning rate and at the dense "
            "columns of the validation split"
        )
    if not one_class and not 0 < positives < samples:
        raise TrainingError(
            f"validation labels must have both classes: got {positives} positives in {samples} rows; "
            "look at the label column and 'positive_label' of the spec"
        )


def check_learned(scores: Scores, metrics: dict[str, float]) -> None:
    """Raise TrainingError on every rank when a model that had time to learn has constant logits or an AUC of 0.5.

    An AUC counts as 0.5 within three standard errors. For a model that has learned nothing, the standard error is
    sqrt((P + N + 1) / (12 P N)) (Hanley and McNeil, 1982). A split that is too small to decide passes.
    """
    positives, samples = metrics["positives"], metrics["samples"]
    (total,) = scores.sums(lambda logits, _, __: [logits])
    mean = total / samples
    (squares,) = scores.sums(lambda logits, _, __: [(logits - mean).square()])
    if math.sqrt(squares / samples) < 1e-6:
        raise TrainingError(
            f"logits must differ between rows: got {mean:.6g} for all; look at the learning rate "
            "(too high kills every ReLU) and at the dense columns"
        )
    error = math.sqrt((samples + 1) / (12 * positives * (samples - positives)))
    if error < 0.01 and abs(metrics["auc"] - 0.5) < 3 * error:
        raise TrainingError(
            f"validation AUC must differ from 0.5 after the warm-up: got {metrics['auc']:.4f} (standard error "
            f"{error:.4f}); check the learning rate (it is usually too high), then whether labels match rows"
        )
