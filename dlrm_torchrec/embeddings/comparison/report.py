"""The report of a comparison of ways to store tables: a table, and a plot of quality against memory."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean, median, stdev
from typing import TYPE_CHECKING

from iopath.common.file_io import g_pathmgr

from dlrm_torchrec.embeddings.comparison.frontier import envelope, frontier_to_markdown
from dlrm_torchrec.embeddings.comparison.variants import Runs, Variant

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SIZES = ["way", "size", "parameters", "MiB"]
_METRICS = {"val/auc": "AUC", "val/logloss": "log-loss"}


def write_report(folder: str, variants: Sequence[Variant], runs: Runs) -> str:
    """Writes ``results.md`` and the plot ``quality.png`` to ``folder``, and returns the text of ``results.md``."""
    text = to_markdown(variants, runs)
    if any(variant.ratio for variant in variants):
        text += frontier_to_markdown(variants, runs)
    with g_pathmgr.open(f"{folder}/results.md", "w") as stream:
        stream.write(text)
    with g_pathmgr.open(f"{folder}/quality.png", "wb") as stream:
        plot(variants, runs).savefig(stream, format="png", dpi=120)
    return text


def to_markdown(variants: Sequence[Variant], runs: Runs | None = None) -> str:
    """One row per variant: its size and, with ``runs``, mean ± standard deviation over seeds and the median speed."""
    columns = [*_SIZES, *_METRICS.values(), "samples/s", "seeds"] if runs else _SIZES
    rows = [columns, ["---"] * len(columns)]
    for variant in variants:
        row = [variant.way, variant.size, f"{variant.parameters:,}", f"{variant.bytes / 2**20:,.2f}"]
        if runs:
            quality = [runs.values(variant, metric) for metric in _METRICS]
            row += [f"{mean(values):.5f} ± {_spread(values):.5f}" for values in quality]
            row += [f"{median(runs.values(variant, 'samples_per_s')):,.0f}", str(len(runs.seeds))]
        rows.append(row)
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def plot(variants: Sequence[Variant], runs: Runs) -> Figure:
    """A plot of each metric against the memory of the tables, with one line per way that joins its sizes in order.

    A dashed line shows plain tables. Variants whose threshold differs from the first one of their way are crosses.
    Of sizes by ratio, a broad line joins the best ways, and each has its name.
    """
    from matplotlib import colormaps  # an optional dependency that only this function needs
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 6), layout="constrained")
    ways = dict.fromkeys(variant.way for variant in variants)
    for axes, metric in zip(figure.subplots(1, 2), _METRICS, strict=True):
        for number, way in enumerate(ways):
            ours = [variant for variant in variants if variant.way == way]
            first = ours[0].tables.threshold
            color = colormaps["tab20"](number)
            for style, label, shown in (
                ("o-", way, [variant for variant in ours if variant.ratio or variant.tables.threshold == first]),
                ("x", None, [variant for variant in ours if not variant.ratio and variant.tables.threshold != first]),
            ):
                values = [runs.values(variant, metric) for variant in shown]
                sizes = [variant.bytes / 2**20 for variant in shown]
                bars = [_spread(each) for each in values]
                axes.errorbar(sizes, [mean(v) for v in values], bars, fmt=style, label=label, color=color, capsize=3)
            if ours[0].tables.kind == "plain":
                axes.axhline(mean(runs.values(ours[0], metric)), color=color, linestyle="--")
        best = [point for point, _ in envelope(variants, runs)]
        places = [(point.variant.bytes / 2**20, mean(runs.values(point.variant, metric))) for point in best]
        axes.plot(*zip(*places, strict=True), color="black", linewidth=6, alpha=0.15)
        for point, place in zip(best, places, strict=True):
            above = 10 if metric == "val/auc" else -16
            axes.annotate(point.variant.way, place, (0, above), textcoords="offset points", ha="center", fontsize=8)
        axes.set(xscale="log", xlabel="MiB of tables", ylabel=f"validation {_METRICS[metric]}")
        axes.margins(x=0.12)
        axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center")
    return figure


def _spread(values: Sequence[float]) -> float:
    return stdev(values) if len(values) > 1 else 0.0
