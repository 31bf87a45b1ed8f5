"""What a run folder holds: its options, its records, its model, its final metrics and its checkpoints."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from iopath.common.file_io import g_pathmgr

from dlrm_torchrec.train.output.records import read_records

Numbers = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class SavedStep:
    """A whole checkpoint."""

    step: int
    metrics: Numbers  # of the newest evaluation
    is_best: bool  # whether no evaluation of the run was better
    plan: dict[str, Any]
    num_bytes: int  # of its files; 0 if it does not say
    windows: list[
        dict[str, Any]
    ]  # those begun, each with name, steps and metrics; empty unless it is a run over windows


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run folder, read; what it lacks is empty."""

    name: str
    folder: str
    config: dict[str, Any]
    records: list[tuple[int, Numbers]]  # steps and numbers, in the order of steps
    model: dict[str, Any]  # the parts of the model
    final: Numbers  # the metrics at the end of the run
    checkpoints: list[SavedStep]

    @property
    def step(self) -> int:
        """The last step of which anything is known."""
        return max([0, *(step for step, _ in self.records), *(saved.step for saved in self.checkpoints)])

    def points(self, metric: str) -> list[tuple[int, float]]:
        """Steps and values of one metric."""
        return [(step, numbers[metric]) for step, numbers in self.records if metric in numbers]

    def newest(self) -> Numbers:
        """The newest value of every metric; those of the end of the run if it has ended."""
        found: Numbers = {}
        for _, numbers in self.records:
            found |= numbers
        return found | self.final


def read_runs(folders: Sequence[str]) -> list[Run]:
    """The runs in these folders, each with a name as short as tells it from the others.

    Raises ValueError when a folder holds no run, or is named twice.
    """
    folders = [folder.rstrip("/") for folder in folders]
    twice = sorted({folder for folder in folders if folders.count(folder) > 1})
    if twice:
        raise ValueError(f"runs must be distinct folders: got {twice[0]} twice; name each once")
    return [_read_run(folder, name) for folder, name in zip(folders, _names(folders), strict=True)]


def _read_run(folder: str, name: str) -> Run:
    if not any(g_pathmgr.exists(f"{folder}/{file}") for file in ("config.json", "metrics.jsonl")):
        raise ValueError(
            f"run must be a folder with config.json or metrics.jsonl: got {folder}; name the folder that a recipe "
            "prints, such as runs/train_dlrm/demo"
        )
    found = [(record.pop("step"), _numbers(record)) for record in read_records(folder).records]
    records, final = sorted(found, key=lambda record: record[0]), _json(f"{folder}/final.json")
    if records and final.get("steps", 0) < records[-1][0]:
        final = {}  # of a run that was continued since
    return Run(
        name=name,
        folder=folder,
        config=_json(f"{folder}/config.json"),
        records=records,
        model=_json(f"{folder}/model.json"),
        final=_numbers(final),
        checkpoints=_checkpoints(f"{folder}/checkpoints"),
    )


def _names(folders: Sequence[str]) -> list[str]:
    """The last parts of the folders, as many as tell them apart; two of a single one."""
    parts = [folder.split("/") for folder in folders]
    same = 0
    while all(len(each) > same + 1 for each in parts) and len({tuple(each[: same + 1]) for each in parts}) == 1:
        same += 1
    if len(folders) == 1:
        same = max(0, len(parts[0]) - 2)
    return ["/".join(each[same:]) for each in parts]


def _numbers(record: dict[str, Any]) -> Numbers:
    return {name: float(value) for name, value in record.items() if type(value) in (int, float)}


def _json(path: str) -> dict[str, Any]:
    """The object in a file; empty if there is no such file, or if it is not whole."""
    if not g_pathmgr.exists(path):
        return {}
    with g_pathmgr.open(path, "rb") as stream:
        try:
            value = json.loads(stream.read())
        except (ValueError, RecursionError):
            return {}
    return value if isinstance(value, dict) else {}


def _checkpoints(folder: str) -> list[SavedStep]:
    """The whole checkpoints, oldest first."""
    names = [name.rstrip("/") for name in g_pathmgr.ls(folder)] if g_pathmgr.isdir(folder) else []
    markers = {name: _json(f"{folder}/{name}/checkpoint.json") for name in names if name.startswith("step-")}
    whole = {name: marker for name, marker in markers.items() if type(marker.get("step")) is int}
    ordered = sorted(whole, key=lambda name: int(whole[name]["step"]))
    best_step = whole[ordered[-1]].get("best_step") if ordered else None
    return [
        SavedStep(
            step=whole[name]["step"],
            metrics=_numbers(whole[name].get("last") or {}),
            is_best=whole[name]["step"] == best_step,
            plan=whole[name].get("plan") or {},
            windows=whole[name].get("windows") or [],
            num_bytes=sum(file["num_bytes"] for file in whole[name].get("files", {}).values()),
        )
        for name in ordered
    ]
