"""What a comparison at equal bytes says: which way to take at which compression, and how quality falls with size."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dlrm_torchrec.embeddings.comparison.variants import Runs, Variant

Floats = NDArray[np.float64]
Form = Literal["power", "exponential"]

_FORMS: dict[Form, tuple[Callable[[Floats, float], Floats], Floats]] = {  # what a share of the bytes loses, and rates
    "power": (lambda shares, rate: shares**-rate, np.geomspace(0.01, 3, 1000)),
    "exponential": (lambda shares, rate: np.exp(-rate * shares), np.geomspace(0.1, 1e5, 1000)),
}
_LEAST_POINTS = 5  # a form has three numbers


class Point(NamedTuple):
    """The quality of a variant for each seed."""

    variant: Variant
    values: list[float]

    @property
    def mean(self) -> float:
        return mean(self.values)

    @property
    def spread(self) -> float:
        """The standard deviation; 0 for one seed."""
        return _spread(self.values)

    def less_than(self, other: Point) -> tuple[float, float]:
        """By how much the other one is better: mean and standard deviation over pairs of runs with the same seed."""
        differences = [theirs - ours for ours, theirs in zip(self.values, other.values, strict=True)]
        return mean(differences), _spread(differences)


@dataclass(frozen=True, kw_only=True)
class Fit:
    """``top - drop * form(share, rate)`` at a share of the plain tables' bytes; power is ``share ** -rate``."""

    form: Form
    top: float
    drop: float
    rate: float
    residual: float  # root of the mean square


def envelope(variants: Sequence[Variant], runs: Runs, metric: str = "val/auc") -> list[tuple[Point, list[Point]]]:
    """For each ratio: the best variant, and the others that are not worse by more than the spread of the difference.

    Plain tables come first. ``metric`` is one of which more is better.
    """
    found = []
    for ratio in sorted({variant.ratio for variant in variants if variant.ratio}):
        points = [Point(v, runs.values(v, metric)) for v in variants if v.ratio == ratio]
        best, *others = sorted(points, key=lambda point: -point.mean)
        found.append((best, [each for each in others if operator.le(*each.less_than(best))]))
    return found


def fit(shares: Sequence[float], quality: Sequence[float], form: Form) -> Fit:
    """The least-squares fit of a form to the quality at each share of the plain tables' bytes."""
    curve, rates = _FORMS[form]
    x, y = np.asarray(shares, np.float64), np.asarray(quality, np.float64)
    found = []
    for rate in rates:  # the two other numbers are linear
        design = np.stack([np.ones_like(x), -curve(x, rate)], axis=1)
        (top, drop), *_ = np.linalg.lstsq(design, y)
        residual = float(np.sqrt(np.mean(np.square(design @ (top, drop) - y))))
        found.append(Fit(form=form, top=float(top), drop=float(drop), rate=float(rate), residual=residual))
    return min(found, key=lambda each: each.residual)


def frontier_to_markdown(variants: Sequence[Variant], runs: Runs) -> str:
    """Which way has the best AUC at each compression, and how the AUC of each way falls with its bytes."""
    best = envelope(variants, runs)
    plain = next((point for point, _ in best if point.variant.ratio == 1), None)
    rows = [["compression", "MiB", "best way", "AUC", "less than plain", "as good within its spread"]]
    for point, others in best:
        if point is not plain:
            names = ", ".join(f"{each.variant.way} {each.mean:.5f}" for each in others)
            lost = "{:.5f} ± {:.5f}".format(*point.less_than(plain)) if plain else ""
            sizes = [f"{point.variant.ratio:,.0f} x", f"{point.variant.bytes / 2**20:,.3f}", point.variant.way]
            rows.append([*sizes, f"{point.mean:.5f} ± {point.spread:.5f}", lost, names])
    text = "\nWhich way to take at which compression:\n\n" + _table(rows)
    return text + _fits(variants, runs, plain, best) if plain else text


def _fits(variants: Sequence[Variant], runs: Runs, plain: Point, best: Sequence[tuple[Point, list[Point]]]) -> str:
    """The table of fits: one row for the best way of each compression, and one for each way with enough sizes."""
    lines = {"the best of all ways": [point for point, _ in best if point is not plain]}
    for way in dict.fromkeys(variant.way for variant in variants if variant.ratio > 1):
        lines[way] = [Point(v, runs.values(v, "val/auc")) for v in variants if v.way == way and v.ratio > 1]
    rows = [["AUC of a share s of the bytes", "power", "residual", "exponential", "residual", "fits better"]]
    for name, points in lines.items():
        if len(points) + 1 < _LEAST_POINTS:
            continue
        shares = [1.0, *(point.variant.bytes / plain.variant.bytes for point in points)]
        quality = [plain.mean, *(point.mean for point in points)]
        power, exponential = (fit(shares, quality, form) for form in ("power", "exponential"))
        better = min(power, exponential, key=lambda each: each.residual)
        rows.append([
            name,
            f"{power.top:.4f} - {power.drop:.4g} s^-{power.rate:.3g}",
            f"{power.residual:.5f}",
            f"{exponential.top:.4f} - {exponential.drop:.4g} exp(-{exponential.rate:.3g} s)",
            f"{exponential.residual:.5f}",
            better.form,
        ])  # fmt: skip
    return "\nHow quality falls with size:\n\n" + _table(rows) if len(rows) > 1 else ""


def _spread(values: Sequence[float]) -> float:
    return stdev(values) if len(values) > 1 else 0.0


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, *rest = rows
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, ["---"] * len(head), *rest))
