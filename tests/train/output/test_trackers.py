"""Runs in W&B and MLflow: what is sent, and that an interrupted run goes on as the same one.

The modules stand in for the libraries and have their signatures.
"""

from __future__ import annotations

import json
import re
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from dlrm_torchrec.train.config import LogConfig
from dlrm_torchrec.train.log import RunLog
from dlrm_torchrec.train.output.trackers import check_tracker, open_tracker
from tests.distributed import here, run_ranks

RUN = {
    "seed": 1,
    "sparse": {"lr": 0.5},
    "shape": {"sparse": [{"name": "user"}]},
    "options": dict.fromkeys(map(str, range(150)), 0),
}
RECORD = {"train/loss": 0.5, "val/hr@10": 0.25}


class Wandb(ModuleType):
    """wandb 0.31, in so far as it is used."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.__spec__ = ModuleSpec("wandb", None)
        self.calls: list[Any] = []

    def init(
        self,
        *,
        project: str | None = None,
        dir: str | None = None,
        id: str | None = None,
        name: str | None = None,
        config: dict[str, Any] | None = None,
        resume: str | None = None,
    ) -> Wandb:
        self.calls.append(("init", project, dir, id, name, config, resume))
        self.id = id or "new"
        self.summary = SimpleNamespace(update=lambda d: self.calls.append(("summary", d)))
        return self

    def log(self, data: dict[str, Any], step: int | None = None, commit: bool | None = None) -> None:
        assert commit is None
        self.calls.append(("log", data, step))

    def finish(self, exit_code: int | None = None) -> None:
        self.calls.append(("finish", exit_code))


class Mlflow(ModuleType):
    """mlflow 3.17, in so far as it is used; it refuses what the server refuses."""

    def __init__(self) -> None:
        super().__init__("mlflow")
        self.__spec__ = ModuleSpec("mlflow", None)
        self.calls: list[Any] = []
        self.params: dict[str, Any] = {}

    def set_experiment(self, experiment_name: str | None = None) -> None:
        self.calls.append(("set_experiment", experiment_name))

    def start_run(self, run_id: str | None = None, *, run_name: str | None = None) -> Any:
        self.calls.append(("start_run", run_id, run_name))
        return SimpleNamespace(info=SimpleNamespace(run_id=run_id or "new"))

    def log_params(self, params: dict[str, Any]) -> None:
        assert len(params) <= 100
        assert all(
            re.fullmatch(r"[\w\-. /]+", name, re.ASCII) and len(str(value)) <= 500 for name, value in params.items()
        )
        self.params |= params

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        assert all(re.fullmatch(r"[\w\-. /]+", name, re.ASCII) for name in metrics)
        self.calls.append(("log_metrics", metrics, step))

    def end_run(self, status: str = "FINISHED") -> None:
        self.calls.append(("end_run", status))


@pytest.fixture(autouse=True)
def fakes(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    modules = SimpleNamespace(wandb=Wandb(), mlflow=Mlflow())
    for name, module in vars(modules).items():
        monkeypatch.setitem(sys.modules, name, module)
    return modules


def test_wandb_gets_options_records_and_the_summary(tmp_path: Path, fakes: SimpleNamespace) -> None:
    folder = str(tmp_path / "demo")
    (tmp_path / "demo").mkdir()
    tracker = open_tracker("wandb", folder, RUN)
    tracker.write(5, RECORD)
    tracker.finish({"val/auc": 0.75, "steps": 9})
    name = "/".join(tmp_path.parts[-1:]) + "/demo"
    assert fakes.wandb.calls == [
        ("init", "dlrm-torchrec", folder, None, name, RUN, None),
        ("log", RECORD, 5),
        ("summary", {"val/auc": 0.75, "steps": 9}),
        ("finish", None),
    ]
    open_tracker("wandb", folder, RUN)
    assert fakes.wandb.calls[-1] == ("init", "dlrm-torchrec", folder, "new", name, RUN, "allow")


def test_mlflow_gets_options_records_and_final_metrics(tmp_path: Path, fakes: SimpleNamespace) -> None:
    tracker = open_tracker("mlflow", str(tmp_path), RUN)
    tracker.write(5, RECORD)
    tracker.finish({"val/auc": 0.75, "steps": 9})
    names = {name: call for call in fakes.mlflow.calls for name in [call[0]]}
    assert fakes.mlflow.calls[0] == ("set_experiment", "dlrm-torchrec")
    assert names["start_run"] == ("start_run", None, "/".join(tmp_path.parts[-2:]))
    assert fakes.mlflow.params == {"seed": "1", "sparse.lr": "0.5"} | {f"options.{n}": "0" for n in range(150)}
    assert fakes.mlflow.calls[-3:] == [
        ("log_metrics", {"train/loss": 0.5, "val/hr_10": 0.25}, 5),
        ("log_metrics", {"val/auc": 0.75, "steps": 9}, 9),
        ("end_run", "FINISHED"),
    ]
    fakes.mlflow.params.clear()
    open_tracker("mlflow", str(tmp_path), {**RUN, "seed": 2})
    assert fakes.mlflow.calls[-1] == ("start_run", "new", None)
    assert fakes.mlflow.params == {}


def test_projects_are_those_of_the_environment(
    tmp_path: Path, fakes: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "ours")
    open_tracker("wandb", str(tmp_path), RUN)
    open_tracker("mlflow", str(tmp_path), RUN)
    assert fakes.wandb.calls[0][1] == "mine"
    assert fakes.mlflow.calls[0][1] == "ours"
    assert json.loads((tmp_path / "tracked.json").read_text()) == {"wandb": "new", "mlflow": "new"}


def test_a_missing_library_is_refused_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    check_tracker("none")
    check_tracker("wandb")
    monkeypatch.delitem(sys.modules, "wandb")
    monkeypatch.setattr("dlrm_torchrec.train.output.trackers.find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"library of --log.track must be installed: got no wandb; pip install wandb"):
        check_tracker("wandb")


def _tracked(folder: str, tracker: Any) -> tuple[list[Any], list[str]]:
    fake = Wandb()
    sys.modules["wandb"] = fake
    log = RunLog(folder, LogConfig(every=2, track=tracker), here(), {"seed": 1})
    log.start(0, 4)
    for step in (1, 2, 3):
        log.step(step, torch.tensor(float(step)), 10)
    log.write(3, {"val/auc": 0.75})
    log.stop(3, is_over=True)
    log.finish({"val/auc": 0.75, "steps": 3})
    return fake.calls, [name for name in ("mlflow", "torch.utils.tensorboard") if name in sys.modules]


def test_a_run_tracks_what_it_writes(tmp_path: Path) -> None:
    (calls, imported), (others, _) = run_ranks(2, _tracked, str(tmp_path), "wandb")
    assert others == []  # only rank 0 speaks
    assert imported == []
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    logged = [{"step": step, **record} for kind, record, step in (call for call in calls if call[0] == "log")]
    assert logged == lines
    assert [call[0] for call in calls] == ["init", "log", "log", "log", "summary", "finish"]
    final = json.loads((tmp_path / "final.json").read_text())
    assert next(call[1] for call in calls if call[0] == "summary") == final
    assert final["val/auc"] == 0.75


def test_a_run_without_a_tracker_asks_for_none(tmp_path: Path) -> None:
    ((calls, _),) = run_ranks(1, _tracked, str(tmp_path), "none")
    assert calls == []
    assert not (tmp_path / "tracked.json").exists()
