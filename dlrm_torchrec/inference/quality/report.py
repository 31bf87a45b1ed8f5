"""What quantising changed in the quality of a model, and whether that is too much."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

CHANGES = {
    "ndcg@10": "NDCG@10 must not fall",
    "auc": "AUC must not fall",
    "rmse": "RMSE must not rise by a share",
    "logloss": "log-loss of labels that are all alike must not rise",
}


class Loss(NamedTuple):
    """By how much a label's quality fell, and the standard error of that."""

    amount: float
    error: float

    @property
    def certain(self) -> float:
        """What of it is more than chance: it lies two standard errors below."""
        return self.amount - 2 * self.error


@dataclass(frozen=True, kw_only=True)
class Report:
    """What quantising changed, on the rows of ``split``; bytes are by part, tables and MLPs."""

    split: str
    before: dict[str, float]
    after: dict[str, float]
    standard_errors: dict[str, float]  # of the changes of the metric ``judged_by``, by its name in ``before``
    largest_change: float  # of a prediction
    bytes_before: dict[str, int]
    bytes_after: dict[str, int]

    def fault(self, most: float) -> str:
        """What rule is broken if quality falls by more than ``most``, and it is not by chance; else nothing.

        Of several labels, the one whose quality falls most decides.
        """
        metric = judged_by(self.before)
        losses = [
            Loss(_loss(metric, before, self.after[name]), self.standard_errors[name])
            for name, before in self.before.items()
            if name.rpartition("/")[2] == metric
        ]
        worst = max(losses, key=lambda loss: loss.certain)
        if worst.certain <= most:
            return ""
        errors = f" plus two standard errors of {worst.error:.1g}"
        return f"{CHANGES[metric]} by more than {most:g}{errors}: got {worst.amount:.2g}"


def judged_by(metrics: Iterable[str]) -> str:
    """The metric of quality: of ranked items NDCG@10; of labels AUC, or RMSE of numbers; log-loss if all are alike."""
    names = {name.rpartition("/")[2] for name in metrics}
    return next(metric for metric in CHANGES if metric in names)


def check_quality(report: Report, most: float, *, option: str) -> None:
    """Raises ValueError, which names the ``option`` that says ``most``, when quality falls by more; see ``fault``."""
    if fault := report.fault(most):
        raise ValueError(f"{fault}, and nothing was written; {remedy(option)}")


def remedy(option: str) -> str:
    """What a person may do about a model that became too much worse."""
    return f"give tables more bits, keep outliers, or raise {option}"


def _loss(metric: str, before: float, after: float) -> float:
    if metric == "rmse":
        return after / before - 1
    return before - after if metric in ("auc", "ndcg@10") else after - before
