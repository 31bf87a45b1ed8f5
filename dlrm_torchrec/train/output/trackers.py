"""Runs in Weights & Biases or MLflow, through their own libraries, which are imported only for this.

A run keeps its id in its folder, in tracked.json, so that it goes on as the same run after an interruption. Servers,
accounts and projects are set as the libraries say, for example by WANDB_MODE or MLFLOW_TRACKING_URI.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from iopath.common.file_io import g_pathmgr

from dlrm_torchrec.train.config import TrackerName
from dlrm_torchrec.train.output.options import options_of

PROJECT = "dlrm-torchrec"  # of runs, unless WANDB_PROJECT or MLFLOW_EXPERIMENT_NAME names another
MOST_PARAMS, LONGEST_PARAM = 100, 500  # of one call of MLflow, and characters of one value


class Tracker:
    """Where records go besides the run folder: here, nowhere."""

    def write(self, step: int, record: Mapping[str, float]) -> None:
        """Record numbers of a step."""

    def finish(self, final: Mapping[str, float]) -> None:
        """Record the metrics at the end of the run, and close it."""


def check_tracker(name: TrackerName) -> None:
    """Raises ValueError unless the library of this tracker is installed."""
    if name != "none" and find_spec(name) is None:
        raise ValueError(
            f"library of --log.track must be installed: got no {name}; pip install {name}, or leave the option out"
        )


def open_tracker(name: TrackerName, folder: str, run: Mapping[str, Any]) -> Tracker:
    """The tracker of the run in ``folder`` with the options ``run``, which goes on if it was tracked before."""
    if name == "none":
        return Tracker()
    return {"wandb": WandbTracker, "mlflow": MlflowTracker}[name](folder, run)


class WandbTracker(Tracker):
    """A run of Weights & Biases."""

    def __init__(self, folder: str, run: Mapping[str, Any]) -> None:
        known = _known_id(folder, "wandb")
        self._run = import_module("wandb").init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=_run_name(folder),
            dir=folder if os.path.isdir(folder) else None,
            config=dict(run),
            id=known,
            resume="allow" if known else None,
        )
        _keep_id(folder, "wandb", self._run.id)

    def write(self, step: int, record: Mapping[str, float]) -> None:
        self._run.log(dict(record), step=step)

    def finish(self, final: Mapping[str, float]) -> None:
        self._run.summary.update(dict(final))
        self._run.finish()


class MlflowTracker(Tracker):
    """A run of MLflow. Its parameters are the options, without those of the data set's columns."""

    def __init__(self, folder: str, run: Mapping[str, Any]) -> None:
        self._mlflow = import_module("mlflow")
        self._mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT))
        known = _known_id(folder, "mlflow")
        if known:
            self._mlflow.start_run(run_id=known)
            return  # parameters of a run cannot change
        _keep_id(folder, "mlflow", self._mlflow.start_run(run_name=_run_name(folder)).info.run_id)
        options = options_of({name: value for name, value in run.items() if name != "shape"})
        params = [(_mlflow_name(name), text[:LONGEST_PARAM]) for name, text in options.items()]
        for first in range(0, len(params), MOST_PARAMS):
            self._mlflow.log_params(dict(params[first : first + MOST_PARAMS]))

    def write(self, step: int, record: Mapping[str, float]) -> None:
        self._mlflow.log_metrics({_mlflow_name(name): value for name, value in record.items()}, step=step)

    def finish(self, final: Mapping[str, float]) -> None:
        self.write(int(final.get("steps", 0)), final)
        self._mlflow.end_run()


def _mlflow_name(name: str) -> str:
    """A name of the characters that MLflow allows: hr@10 becomes hr_10."""
    return re.sub(r"[^\w\-. /]", "_", name, flags=re.ASCII)


def _run_name(folder: str) -> str:
    return "/".join(folder.rstrip("/").split("/")[-2:])


def _known_id(folder: str, tracker: str) -> str | None:
    found: str | None = _ids(folder).get(tracker)
    return found


def _keep_id(folder: str, tracker: str, run_id: str) -> None:
    ids = {**_ids(folder), tracker: run_id}
    with g_pathmgr.open(f"{folder}/tracked.json", "w") as stream:
        json.dump(ids, stream)


def _ids(folder: str) -> dict[str, str]:
    path = f"{folder}/tracked.json"
    if not g_pathmgr.exists(path):
        return {}
    with g_pathmgr.open(path, "r") as stream:
        ids: dict[str, str] = json.load(stream)
    return ids
