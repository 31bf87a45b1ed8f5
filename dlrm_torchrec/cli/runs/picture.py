"""The charts of runs as one picture, which needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

from dlrm_torchrec.cli.runs.charts import COLOURS, charts_of
from dlrm_torchrec.cli.runs.read import Run

ACROSS = 2  # charts in a row
THOUSANDS = 10_000  # from here on, numbers are written as 10k
PAINTS = ("#1f6fbf", "#c8590a", "#1c8450", "#8d3a9c", "#bf2f2a", "#0f8496", "#84680a", "#636b76")  # as on the page
STROKES = ("-", "--", ":")


def check_matplotlib() -> None:
    """Raises ValueError where the package is missing, which only pictures need."""
    if not find_spec("matplotlib"):
        raise ValueError(
            "a picture must have matplotlib to draw it: got none; pip install matplotlib, or leave out --png"
        )


def draw(runs: Sequence[Run], path: str) -> None:
    """Writes a picture of the page's charts to ``path``, whose ending decides the format; ValueError without charts."""
    from matplotlib.figure import Figure  # an optional dependency that only pictures need
    from matplotlib.ticker import EngFormatter

    charts = list(charts_of(runs).values())
    if not charts:
        raise ValueError(f"a picture must have a record to draw: got none in {runs[0].folder}; train the run first")
    down = -(-len(charts) // ACROSS)
    figure = Figure(figsize=(6 * ACROSS, 2.8 * down), layout="constrained")
    places = figure.subplots(down, ACROSS, squeeze=False).flat
    numbers = {run.name: number for number, run in enumerate(runs)}
    for chart, place in zip(charts, places, strict=False):
        for series in chart.series:
            number = numbers.get(series.name, len(runs))  # the best possible one is no run's
            paint, stroke = PAINTS[number % COLOURS], STROKES[number // COLOURS % len(STROKES)]
            dots = "o" if len(series.points) == 1 else ""
            steps, values = zip(*series.points, strict=True)
            place.plot(steps, values, color=paint, linestyle=stroke, marker=dots, label=series.name)
        if chart.level is not None:
            place.axhline(chart.level[1], color="#636b76", linestyle="--", linewidth=1, label=chart.level[0])
        place.set_title(f"{chart.title} ({chart.note})" if chart.note else chart.title, loc="left", fontsize=10)
        place.set_xlim(0, chart.last)
        place.xaxis.set_major_formatter(EngFormatter(sep=""))
        if chart.high >= THOUSANDS:
            place.yaxis.set_major_formatter(EngFormatter(sep=""))
        place.grid(alpha=0.3)
        place.spines[["top", "right"]].set_visible(False)
        place.legend(frameon=False, fontsize=8)
    for place in places:
        place.axis("off")
    figure.savefig(path, dpi=120)
