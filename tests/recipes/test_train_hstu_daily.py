"""recipes/train_hstu_daily.py: its days come in order, once, and whole after any kill, and they are published."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow.parquet as pq
import pytest

from dlrm_torchrec.datasets.sequences.synthetic import Interests
from dlrm_torchrec.datasets.synthetic.specs import interests_spec
from dlrm_torchrec.inference import publishing
from dlrm_torchrec.inference.deltas.offline import apply_deltas
from dlrm_torchrec.inference.lookups import FIRST
from dlrm_torchrec.inference.predictor import Predictor
from dlrm_torchrec.inference.quantization import load_trained
from dlrm_torchrec.preparation.histories import LogColumns, prepare_histories
from dlrm_torchrec.preparation.readers.tables import Form
from dlrm_torchrec.preparation.time_windows import Shares
from dlrm_torchrec.recipe import load_training_recipe, read_config
from dlrm_torchrec.schema import vocabulary_path
from dlrm_torchrec.train.checkpoints.folder import checkpoint_path
from dlrm_torchrec.train.checkpoints.marker import read_progress
from dlrm_torchrec.train.schedule import ScheduledLearningRate
from tests.cli.runs.test_page import read, table
from tests.distributed import run_ranks
from tests.inference.serving.served import Server
from tests.recipe import _run, load_recipe, records, run_recipe

DAYS = ("2023-11-15", "2023-11-16", "2023-11-17")
Metrics = dict[str, float]


def arguments(folder: Path, days: int, *options: str) -> list[str]:
    return [
        "demo", "--rows=3000", "--batch-size=16", f"--windows.days={days}", f"--run-dir={folder}/run", "--log.every=1",
        "--hstu.layers=1", "--schedule.warmup-steps=0", "--sparse.kind=adagrad", "--dense.kind=sgd", *options,
    ]  # fmt: skip


def train(folder: Path, days: int, *options: str, ranks: int = 1) -> Metrics:
    metrics = run_recipe("train_hstu_daily", arguments(folder, days, *options), ranks)
    return {name: value for name, value in metrics.items() if name != "samples_per_s"}


def published(folder: Path) -> list[str]:
    return ["--publish.folder", f"{folder}/published", "--publish.quantization.max-auc-loss=1"]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def losses(folder: Path) -> list[float]:
    return [record["train/loss"] for record in records(folder / "run/demo") if "train/loss" in record]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Metrics]:
    """An undisturbed run of three days, which publishes each of them, and its final metrics."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, train(folder, 3, *published(folder), "--checkpoint.keep=3")


# Before which call of a function a process is killed: in the middle of the second day, and when its delta is written.
MOMENTS: list[tuple[Any, str, int]] = [(ScheduledLearningRate, "set", 10), (publishing, "write_delta", 1)]


def _die(folder: Path, moment: int) -> None:
    place, name, calls = MOMENTS[moment]
    real: Callable[..., Any] = getattr(place, name)
    left = [calls]

    def or_die(*given: Any, **named: Any) -> Any:
        left[0] -= 1
        if not left[0]:
            os._exit(9)
        return real(*given, **named)

    with patch.object(place, name, or_die):
        _run("train_hstu_daily", arguments(folder, 3, *published(folder), "--checkpoint.every=5"))


@pytest.mark.parametrize("moment", range(len(MOMENTS)))
def test_a_killed_run_ends_like_an_undisturbed_one(tmp_path: Path, whole: tuple[Path, Metrics], moment: int) -> None:
    with pytest.raises(RuntimeError, match="exit code 9"):
        run_ranks(1, _die, tmp_path, moment, join=False)
    folder, metrics = whole
    assert train(tmp_path, 3, *published(tmp_path), "--checkpoint.every=5") == metrics
    assert losses(tmp_path) == losses(folder)
    assert files(tmp_path / "published") == files(folder / "published")


def test_days_are_judged_before_they_are_trained_on(whole: tuple[Path, Metrics]) -> None:
    folder, metrics = whole
    days = [record for record in records(folder / "run/demo") if "val/unseen" in record]
    ends = [record["step"] for record in days]
    assert ends[-1] == metrics["steps"] == len(losses(folder))
    newest = read_progress(f"{folder}/run/demo/checkpoints/step-{ends[-1]:08d}")
    assert [window["name"] for window in newest.windows] == [*DAYS]
    assert np.cumsum([window["steps"] for window in newest.windows]).tolist() == ends
    assert f"windows/{DAYS[0]}/val/auc" not in metrics  # nobody had learned anything
    assert metrics[f"windows/{DAYS[0]}/val/unseen"] == 1
    for day, window in zip(DAYS[1:], newest.windows[1:], strict=True):
        for name in ("val/auc", "val/gauc", "val/ne", "val/unseen", "val/age", "teacher/auc"):
            assert metrics[f"windows/{day}/{name}"] == window["metrics"][name]
        assert window["metrics"]["val/age"] == 1
        assert 0 < window["metrics"]["val/unseen"] < 0.2
    assert metrics["progressive/gauc"] == pytest.approx(np.mean([metrics[f"windows/{d}/val/gauc"] for d in DAYS[1:]]))

    # evaluate finds the same by the checkpoint of the day before
    for day, step in zip(DAYS[1:], ends, strict=False):
        found = run_ranks(1, _evaluate, folder / "run/demo", {"step": step, "split": day}, join=False)[0]
        for name in ("auc", "gauc", "ne"):
            assert found[f"{day}/{name}"] == pytest.approx(metrics[f"windows/{day}/val/{name}"], rel=1e-5)

    # and show lists them
    page = read(folder / "run/demo")
    head, *rows = table(page, "Windows of run/demo")
    assert [row[0] for row in rows] == [*DAYS]
    assert rows[2][head.index("GAUC")] == f"{metrics['val/gauc']:.4f}"


def _evaluate(run: Path, options: dict[str, Any]) -> Metrics:
    recipe = load_recipe("evaluate")
    metrics: Metrics = recipe.main(recipe.Config(recipe="train_hstu_daily", run=str(run), **options))
    return metrics


def test_a_server_takes_over_its_days(tmp_path: Path, whole: tuple[Path, Metrics]) -> None:
    published, served = whole[0] / "published", tmp_path / "served"
    deltas = [published / "delta-0001", published / "delta-0002"]
    apply_deltas(published / "base-0000", deltas, tmp_path / "made")
    row = {
        "segment": 3,
        "item": [5, 7],
        "category": [5, 1],
        "action": ["like", "skip"],
        "time": [1_700_000_000, 1_700_000_060],
    }
    row |= {"candidates.item": [9, 400], "candidates.category": [1, 0], "candidates.time": 1_700_000_200}
    columns = {name: [value] for name, value in row.items()}
    shutil.copytree(published / "base-0000", served / "base-0000")
    server = Server(served).wait()
    try:
        for version, package in ((0, published / "base-0000"), (2, tmp_path / "made")):
            if version:
                for each in deltas:
                    shutil.copytree(each, served / each.name)
                assert json.loads(server.ask("POST", "/reload")[1])["version"] == version
            status, answer = server.predict(json.dumps({"rows": [row]}))
            assert status == 200, answer
            expected = Predictor.load(package)(columns).probabilities
            assert answer["probabilities"][0] == pytest.approx(expected, rel=1e-5)
    finally:
        server.stop()


def test_days_may_come_one_after_another_on_other_ranks(tmp_path: Path, whole: tuple[Path, Metrics]) -> None:
    folder, expected = whole
    for days, ranks in ((1, 2), (2, 1), (3, 2)):
        metrics = train(tmp_path, days, *published(tmp_path), ranks=ranks)
    assert losses(tmp_path) == pytest.approx(losses(folder), rel=1e-4)
    for name, value in expected.items():
        assert metrics[name] == pytest.approx(value, abs=1e-3), name
    apply_deltas(
        tmp_path / "published/base-0000",
        [tmp_path / "published/delta-0001", tmp_path / "published/delta-0002"],
        tmp_path / "made",
    )
    again = f"--publish.folder={tmp_path}/again"  # the model of the last checkpoint, as a first version
    assert train(tmp_path, 3, *published(tmp_path), again) == pytest.approx(metrics)
    made, last = files(tmp_path / "made"), files(tmp_path / "again/base-0000")
    assert made.keys() == last.keys()
    assert [name for name in made if made[name] != last[name]] == ["package.json"]  # which has the version
    samples = json.loads(made["package.json"])["samples"]  # by which a server cuts the histories of its requests
    assert samples == json.loads((tmp_path / "run/demo/config.json").read_text())["samples"]


def test_dropout_goes_on_when_another_day_has_come(tmp_path: Path) -> None:
    options = ["--hstu.dropout=0.3", "--hstu.input-dropout=0.3"]
    whole = train(tmp_path / "whole", 2, *options)
    train(tmp_path / "parts", 1, *options)
    assert train(tmp_path / "parts", 2, *options) == whole
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")


HEAD = ["user", "item", "category", "action", "time"]
WEEK_S = 7 * 86_400
Events = list[list[Any]]


def weeks(number: int) -> Events:
    """The events of the first whole weeks of some users."""
    log = Interests(interests_spec(items=20), users=100, seed=0).log()
    actions = [("skip", "like")[action - 1] for action in log.actions]
    columns = (log.user_of, log.events["item"], log.events["category"], actions, log.times)
    first = _week(log.times.min()) + 1
    return [list(event) for event in zip(*columns, strict=True) if 0 <= _week(event[-1]) - first < number]


def _week(time: int) -> int:
    return int(time) // WEEK_S


def write_log(folder: Path, events: Events) -> Path:
    """A prepared folder of these events."""
    folder.mkdir(exist_ok=True)
    with (folder / "log.csv").open("w", newline="") as file:
        csv.writer(file).writerows([HEAD, *events])
    prepare_histories(
        [str(folder / "log.csv")],
        LogColumns(user="user", item="item", action="action", time="time", events=("category",)),
        str(folder / "log"),
        form=Form(),
        name="likes",
        positive=("like",),
        shares=Shares(),
        overwrite=True,
    )
    return folder / "log"


def test_a_prepared_log_is_cut_by_time_and_may_not_change(tmp_path: Path) -> None:
    events = weeks(4)
    options = ["--windows.length=1w", f"--data={write_log(tmp_path, events)}"]
    metrics = train(tmp_path, 1, *options, *published(tmp_path), ranks=2)
    assert len([name for name in metrics if name.endswith("val/gauc") and name.startswith("windows/")]) == 3
    assert "teacher/auc" not in metrics
    assert {path.name for path in (tmp_path / "published").iterdir()} == {
        "base-0000",
        *(f"delta-000{version}" for version in (1, 2, 3)),
    }
    assert train(tmp_path, 1, *options) == pytest.approx(metrics)  # nothing new

    # another action of one event, and a week that is given again as the one after the last
    first = min(_week(event[4]) for event in events)
    liked = next(event for event in events if _week(event[4]) == first)
    changed = [[*event[:3], "like" if event[3] == "skip" else "skip", event[4]] if event is liked else event
               for event in events]  # fmt: skip
    write_log(tmp_path, changed)
    with pytest.raises(RuntimeError, match=r"must hold the rows that the run was trained on: got others"):
        train(tmp_path, 1, *options)
    again = [[*event[:4], event[4] + 4 * WEEK_S] for event in events if _week(event[4]) == first]
    write_log(tmp_path, [*events, *again])
    with pytest.raises(RuntimeError, match=r"rows must be given once: got those of window .* again as window"):
        train(tmp_path / "new", 1, *options)


def test_a_log_with_more_days_goes_on_with_the_model(tmp_path: Path) -> None:
    logs = {number: write_log(tmp_path / str(number), weeks(number)) for number in (2, 3)}
    train(tmp_path / "first", 1, "--windows.length=1w", f"--data={logs[2]}")
    last = f"{datetime.fromtimestamp(max(_week(event[4]) for event in weeks(3)) * WEEK_S, UTC):%Y-%m-%d}"
    more = [f"--start-from={tmp_path}/first/run/demo", f"--windows.since={last}", "--sparse.lr=1e-30"]
    metrics = train(tmp_path / "more", 1, "--windows.length=1w", f"--data={logs[3]}", *more)
    assert {name.split("/")[1] for name in metrics if name.startswith("windows/")} == {last}
    assert 0 < metrics["val/auc"] < 1  # of the first run's model
    before, after = (rows_by_value(tmp_path / name, logs[number]) for name, number in (("first", 2), ("more", 3)))
    for feature in ("user", "item", "category"):
        assert len(before[feature]) >= 8
        assert all((after[feature][value] == row).all() for value, row in before[feature].items()), feature
    assert len(after["user"]) > len(before["user"])


def rows_by_value(folder: Path, log: Path) -> dict[str, dict[str, Any]]:
    """The trained row of each value of each feature of a run on a prepared log."""
    recipe = load_training_recipe("train_hstu_daily")
    cfg = read_config(recipe, f"{folder}/run/demo")
    tables = load_trained(recipe.build, cfg, cfg.shape, checkpoint_path(f"{folder}/run/demo/checkpoints")).tables
    found = {}
    for feature in cfg.shape.sparse:
        values = pq.read_table(log / vocabulary_path(feature))["value"].to_pylist()
        weights = tables.embeddings[f"t_{feature.name}"].weight.detach().numpy()
        found[feature.name] = dict(zip(values, weights[FIRST:], strict=True))
    return found


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_demo_reaches_its_value(tmp_path: Path) -> None:
    metrics = run_recipe("train_hstu_daily", ["demo", f"--run-dir={tmp_path}"], 1, timeout_s=800)
    assert metrics["val/auc"] > metrics["teacher/auc"] - 0.02
    assert metrics["windows/2023-11-22/val/auc"] < metrics["val/auc"] - 0.02  # it goes on learning
