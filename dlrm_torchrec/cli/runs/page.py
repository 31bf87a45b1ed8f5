"""Runs as a web page: their metrics against steps, what they reached, how their options differ, their checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlrm_torchrec.cli.runs.charts import MOST_RUNS, charts_of, kind_of, title_of
from dlrm_torchrec.cli.runs.options import differences
from dlrm_torchrec.cli.runs.read import Run
from dlrm_torchrec.pages.lines import number_text
from dlrm_torchrec.pages.quantities import Quantity, share, size
from dlrm_torchrec.pages.render import render
from dlrm_torchrec.train.checkpoints.progress import DECISIVE
from dlrm_torchrec.train.output.options import options_of

TEMPLATE = Path(__file__).with_name("runs.html")
NAMED = 2  # runs that the title names
HEADLINES = ("val/auc", "val/ne", "val/calibration", "val/logloss", "val/rmse", "val/hr@10", "samples_per_s")

WINDOW_METRICS = {  # titles of the metrics of a window
    "val/auc": "AUC before training",
    "teacher/auc": "Best possible",
    "val/gauc": "GAUC",
    "val/ne": "Normalised entropy",
    "val/rmse": "RMSE",
    "val/unseen": "Unseen ids",
    "val/age": "Age of the model, days",
}


def page(runs: Sequence[Run]) -> str:
    """One HTML document of 1 to 24 runs without other files or scripts; ValueError for more."""
    if len(runs) > MOST_RUNS:
        raise ValueError(f"a page must show at most {MOST_RUNS} runs: got {len(runs)}; show them in parts")
    newest = [run.newest() for run in runs]
    reached = list(dict.fromkeys(name for numbers in newest for name in numbers if not name.startswith("windows/")))
    return render(
        TEMPLATE,
        title=" and ".join(run.name for run in runs) if len(runs) <= NAMED else f"{len(runs)} runs",
        runs=runs,
        kinds=[kind_of(number) for number in range(len(runs))],
        headlines={name: _texts(newest, name) for name in HEADLINES if name in reached},
        title_of=title_of,
        charts=charts_of(runs),
        reached={name: _texts(newest, name) for name in reached},
        options=options_of(runs[0].config) if len(runs) == 1 else {},
        differences=differences([run.config for run in runs]),
        models=[(run.name, model_rows(run.model)) for run in _of_distinct_models(runs)],
        ranks=[(number, rows) for number, run in enumerate(runs) if (rows := rank_rows(run))],
        windows=[(run.name, found) for run in runs if (found := window_rows(run))],
        window_metrics=WINDOW_METRICS,
        saved=[(number, saved) for number, run in enumerate(runs) for saved in run.checkpoints],
        main_metric=next((name for name in DECISIVE if any(name in each.metrics for each in _saved(runs))), ""),
        number_text=number_text,
        size=size,
    )


def window_rows(run: Run) -> list[list[str]]:
    """Name, steps and metrics of each window that the newest checkpoint has begun."""
    windows = run.checkpoints[-1].windows if run.checkpoints else []
    return [
        [
            f"{window['name']}{', not published' if 'published' in window['metrics'] else ''}",
            f"{window['steps']:,}",
            *(number_text(window["metrics"][name]) if name in window["metrics"] else "" for name in WINDOW_METRICS),
        ]
        for window in windows
    ]


def _texts(numbers: Sequence[dict[str, float]], name: str) -> list[str]:
    return [number_text(each[name]) if name in each else "" for each in numbers]


def _saved(runs: Sequence[Run]) -> list[Any]:
    return [saved for run in runs for saved in run.checkpoints]


def _of_distinct_models(runs: Sequence[Run]) -> list[Run]:
    """The first run of each model that runs have described."""
    found: list[Run] = []
    for run in runs:
        if run.model and all(run.model != other.model for other in found):
            found.append(run)
    return found


@dataclass(frozen=True)
class Piece:
    """A segment of a bar."""

    kind: str
    name: str
    amount: float
    text: str


@dataclass(frozen=True)
class ModelRow:
    """A part of a model: its share of the parameters and of the multiply-adds, and its numbers."""

    name: str
    parameters: list[Piece]
    products: list[Piece]
    contents: list[Quantity | str]


def model_rows(model: dict[str, Any]) -> list[ModelRow]:
    """A row for each part that the run described, in the model's order."""
    parts = model.get("parts", [])
    sums = {name: sum(part[name] for part in parts) or 1 for name in ("parameters", "multiply_adds")}
    return [
        ModelRow(
            part["name"],
            [Piece("amount", "parameters", part["parameters"] / sums["parameters"], f"{part['parameters']:,}")],
            [
                Piece(
                    "work", "multiply-adds", part["multiply_adds"] / sums["multiply_adds"], f"{part['multiply_adds']:,}"
                )
            ],
            [
                f"{part['parameters']:,}",
                share(part["parameters"], sums["parameters"]),
                size(part["weight_bytes"]),
                size(part["moment_bytes"]),
                f"{part['multiply_adds']:,.0f}",
                share(part["multiply_adds"], sums["multiply_adds"]),
                size(part["moved_bytes"]),
            ],
        )
        for part in parts
    ]


@dataclass(frozen=True)
class RankRow:
    """The bytes of table weights on a rank."""

    rank: int
    pieces: list[Piece]
    bytes: Quantity


def rank_rows(run: Run) -> list[RankRow]:
    """A row for each rank of the plan of the newest checkpoint; none unless the run has described its tables."""
    tables = run.model.get("tables", {})
    plan = run.checkpoints[-1].plan if run.checkpoints else {}
    if not plan or not set(plan) <= set(tables):
        return []
    held: dict[int, float] = {}
    for name, placed in plan.items():
        table = tables[name]
        for shard in placed["shards"]:
            rows, columns = shard["size"] or (table["rows"], table["dim"])  # a replica has no size
            held[shard["rank"]] = held.get(shard["rank"], 0) + table["element_bytes"] * rows * columns
    most = max(held.values())
    return [
        RankRow(rank, [Piece("amount", "tables", count / most, str(size(count)))], size(count))
        for rank, count in sorted(held.items())
    ]
