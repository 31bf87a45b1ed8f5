"""recipes/train_dlrm_daily.py: what it reaches, and that its days come in order, once, and whole after any kill."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dlrm_torchrec.datasets.prepared.manifest import Manifest
from dlrm_torchrec.inference import publishing
from dlrm_torchrec.inference.deltas.offline import apply_deltas
from dlrm_torchrec.inference.quality.report import Report
from dlrm_torchrec.train.checkpoints.checkpoint import Checkpoints
from dlrm_torchrec.train.checkpoints.marker import read_progress
from dlrm_torchrec.train.log import RunLog
from dlrm_torchrec.train.metrics import labels
from dlrm_torchrec.train.metrics.progressive import told
from dlrm_torchrec.train.schedule import ScheduledLearningRate
from tests.distributed import run_ranks
from tests.prepared import write_prepared
from tests.recipe import _run, records, run_recipe

ROWS, BATCH = 4_000, 256
STEPS = 16  # of a day
Metrics = dict[str, float]


def arguments(folder: Path, days: int, *options: str, preset: str = "demo") -> list[str]:
    return [
        preset, f"--rows={ROWS}", f"--batch-size={BATCH}", f"--windows.days={days}", f"--run-dir={folder}/run",
        "--bottom", "16", "8", "--top", "16", "1", "--log.every=8", *options,
    ]  # fmt: skip


def without_speed(metrics: Metrics) -> Metrics:
    return {name: value for name, value in metrics.items() if name != "samples_per_s"}


def train(folder: Path, days: int, *options: str, ranks: int = 1, preset: str = "demo") -> Metrics:
    return without_speed(run_recipe("train_dlrm_daily", arguments(folder, days, *options, preset=preset), ranks))


def test_a_setting_cannot_follow_from_rows_that_are_still_to_come(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"batch_size must be set for a run over windows: got 0, .*; set it"):
        _run("train_dlrm_daily", ["demo", "--batch-size=0", f"--run-dir={tmp_path}"])
    assert not list(tmp_path.iterdir())


def test_days_are_judged_before_they_are_trained_on(tmp_path: Path) -> None:
    options = ["demo", "--rows=40960", "--windows.days=4", f"--run-dir={tmp_path}"]
    metrics = run_recipe("train_dlrm_daily", options, 2)
    gains = [
        (metrics[f"windows/day-{day:04d}/val/auc"] - 0.5) / (metrics[f"windows/day-{day:04d}/teacher/auc"] - 0.5)
        for day in (1, 2, 3)
    ]
    assert gains[0] > 0.7
    assert gains[2] > 0.82
    assert "windows/day-0000/val/auc" not in metrics  # nobody had learned anything
    unseen = [metrics[f"windows/day-{day:04d}/val/unseen"] for day in range(4)]
    assert unseen[0] == 1
    assert all(0.01 < each < 0.15 for each in unseen[1:])
    assert metrics["progressive/auc"] == pytest.approx(
        np.mean([metrics[f"windows/day-{day:04d}/val/auc"] for day in (1, 2, 3)])
    )
    assert metrics["val/age"] == 1
    lines = [record for record in records(tmp_path / "demo") if "val/unseen" in record]
    assert [line["step"] for line in lines] == [80, 160, 240, 320]
    assert [line["val/unseen"] for line in lines] == unseen
    assert [line["teacher/auc"] for line in lines] == [
        metrics[f"windows/day-{day:04d}/teacher/auc"] for day in range(4)
    ]
    newest = read_progress(str(tmp_path / "demo/checkpoints/step-00000320"))
    assert [window["name"] for window in newest.windows] == [f"day-{day:04d}" for day in range(4)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Metrics]:
    """An undisturbed run of three days, which publishes each of them, and its final metrics."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, train(folder, 3, *published(folder))


def published(folder: Path) -> list[str]:
    return ["--publish.folder", f"{folder}/published", "--publish.quantization.max-auc-loss=1"]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# Before which call of a function a process is killed: in the middle of a day or a save, in an evaluation, while a
# package is written, and before a delta gets its name.
MOMENTS: list[tuple[Any, str, int]] = [
    (ScheduledLearningRate, "set", STEPS + 7),
    (Checkpoints, "_commit", 3),
    (labels, "label_metrics", 3),
    (publishing, "write_package", 2),
    (publishing, "write_delta", 1),
]


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
        _run("train_dlrm_daily", arguments(folder, 3, *published(folder), "--checkpoint.every=5"))


@pytest.mark.parametrize("moment", range(len(MOMENTS)))
def test_a_killed_run_ends_like_an_undisturbed_one(tmp_path: Path, whole: tuple[Path, Metrics], moment: int) -> None:
    with pytest.raises(RuntimeError, match="exit code 9"):
        run_ranks(1, _die, tmp_path, moment, join=False)
    folder, metrics = whole
    assert train(tmp_path, 3, *published(tmp_path), "--checkpoint.every=5") == metrics
    assert files(tmp_path / "published") == files(folder / "published")
    assert {path.partition("/")[0] for path in files(tmp_path / "published")} == {
        "base-0000",
        "delta-0001",
        "delta-0002",
    }
    days = [record for record in records(tmp_path / "run/demo") if "val/unseen" in record]
    assert [record["step"] for record in days] == [STEPS, 2 * STEPS, 3 * STEPS]


def _refuse(folder: Path, died_at: int) -> Metrics:
    """What a run of three days ends with, whose second day is refused, unless it dies at so many steps."""
    fault, rates, say = Report.fault, ScheduledLearningRate.set, RunLog.say

    def second(report: Report, _: float) -> str:
        return fault(report, -1.0 if report.split == "day-0001" else 1.0)

    def or_die(self: ScheduledLearningRate, step: int) -> None:
        if step == died_at:
            os._exit(9)
        rates(self, step)

    def heard(self: RunLog, text: str) -> None:
        with (folder / "said.txt").open("a") as file:
            file.write(f"{text}\n")
        say(self, text)

    with (
        patch.object(Report, "fault", second),
        patch.object(ScheduledLearningRate, "set", or_die),
        patch.object(RunLog, "say", heard),
    ):
        return _run("train_dlrm_daily", arguments(folder, 3, *published(folder), "--checkpoint.every=5"))


def test_a_run_goes_on_after_a_day_that_is_not_published(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    metrics = without_speed(run_ranks(1, _refuse, whole, -1, join=False)[0])
    assert metrics["steps"] == 3 * STEPS
    assert metrics["windows/day-0001/published"] == 0
    assert [name for name in metrics if name.endswith("published")] == ["windows/day-0001/published"]
    said = (whole / "said.txt").read_text()
    assert f"train: {3 * ROWS:,} rows; {3 * STEPS} steps\n" in said
    assert said.count("window day-0001 is not published, and ") == 1
    assert f"{whole}/published stays at version 0: AUC must not fall by more than -1 plus two standard errors" in said
    assert (
        "; the next window may pass, or give tables more bits, keep outliers, or raise --publish.quantization." in said
    )
    assert "nothing was written" not in said
    assert "not published, because quantising cost too much quality: day-0001\n" in said

    # the third day's delta follows the first day's package
    folder = whole / "published"
    assert {path.name for path in folder.iterdir()} == {"base-0000", "delta-0001"}
    apply_deltas(folder / "base-0000", [folder / "delta-0001"], tmp_path / "made")
    assert json.loads((tmp_path / "made/package.json").read_text())["window"] == "day-0002"
    again = f"--publish.folder={tmp_path}/again"  # the model of the last checkpoint, as a first version
    assert train(whole, 3, *published(whole), again) == metrics
    made, last = files(tmp_path / "made"), files(tmp_path / "again/base-0000")
    assert [name for name in made if made[name] != last[name]] == ["package.json"]  # which has the version

    # a kill before the first checkpoint of the third day changes nothing
    with pytest.raises(RuntimeError, match="exit code 9"):
        run_ranks(1, _refuse, killed, 2 * STEPS + 2, join=False)
    assert without_speed(run_ranks(1, _refuse, killed, -1, join=False)[0]) == metrics
    assert files(killed / "published") == files(folder)


@pytest.mark.parametrize("preset", ["demo", "managed"])
def test_days_may_come_one_after_another_on_other_ranks(tmp_path: Path, preset: str) -> None:
    for days, ranks in ((1, 2), (2, 1), (3, 2)):
        metrics = train(tmp_path, days, *published(tmp_path), ranks=ranks, preset=preset)
    expected = train(tmp_path / "two", 3, ranks=2, preset=preset)
    for name, value in expected.items():
        assert metrics[name] == pytest.approx(value, abs=2e-4), name
    folder = tmp_path / "published"
    assert {path.name for path in folder.iterdir()} == {"base-0000", "delta-0001", "delta-0002"}
    apply_deltas(folder / "base-0000", [folder / "delta-0001", folder / "delta-0002"], tmp_path / "made")
    again = f"--publish.folder={tmp_path}/again"  # the model of the last checkpoint, as a first version
    assert train(tmp_path, 3, *published(tmp_path), again, preset=preset) == metrics
    made, whole = files(tmp_path / "made"), files(tmp_path / "again/base-0000")
    assert made.keys() == whole.keys()
    assert [name for name in made if made[name] != whole[name]] == ["package.json"]  # which has the version


def test_learning_rates_go_on_or_begin_again(tmp_path: Path) -> None:
    options = ["--schedule.warmup-steps=4", "--schedule.decay-start=4", "--schedule.decay-steps=-1", "--log.every=1"]
    rates = {}
    for restart in (False, True):
        folder = tmp_path / str(restart)
        train(folder, 2, *options, *(["--restart-rates"] if restart else []))
        rates[restart] = [each["lr/dense"] for each in records(folder / "run/demo") if "lr/dense" in each]
    assert len(rates[True]) == 2 * STEPS
    assert rates[True][:STEPS] == rates[True][STEPS:]
    assert rates[False][STEPS] < rates[False][STEPS - 1]
    assert len(set(rates[False][4:])) == 2 * STEPS - 4


DAYS = [f"2026-01-0{day}" for day in range(1, 5)]


def write_day(parent: Path, number: int, *, label: float | None = None) -> Path:
    """A prepared folder of a day, with checksums; all rows have the label, if one is given."""
    folder = write_prepared(parent / DAYS[number], {"train": [[300], [200, 100]]}, seed=number)
    if label is not None:
        for path in (folder / "train").iterdir():
            table = pq.read_table(path)
            pq.write_table(table.set_column(0, "click", pa.array([label] * len(table), pa.float32())), path)
    manifest = Manifest.load(str(folder))
    sums = [replace(each, sha256=_sha256(folder / each.path)) for each in manifest.splits["train"].files]
    replace(manifest, splits={"train": replace(manifest.splits["train"], files=tuple(sums))}).save(str(folder))
    return folder


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def train_folders(folder: Path, *options: str) -> Metrics:
    return train(folder, 1, f"--data={folder}/days", "--batch-size=64", *options)


def test_folders_that_appear_are_trained_on_once_and_in_order(tmp_path: Path) -> None:
    for number in (0, 1):
        write_day(tmp_path / "days", number)
    assert train_folders(tmp_path)["steps"] == 20
    assert train_folders(tmp_path)["steps"] == 20  # nothing new
    write_day(tmp_path / "days", 3)
    with pytest.raises(RuntimeError, match=r"without a gap: got 2026-01-04 after 2026-01-02; bring what is between"):
        train_folders(tmp_path)
    damaged = write_day(tmp_path / "days", 2) / "train/part-1.parquet"
    content = damaged.read_bytes()
    damaged.write_bytes(content[:-1] + b"x")
    with pytest.raises(RuntimeError, match=r"part-1.parquet must have the SHA-256 of dataset.json"):
        train_folders(tmp_path)
    damaged.write_bytes(content)
    metrics = train_folders(tmp_path)
    assert metrics["steps"] == 40
    whole = train(tmp_path / "whole", 1, f"--data={tmp_path}/days", "--batch-size=64")
    assert whole == metrics
    shutil.copytree(tmp_path / "days" / DAYS[1], tmp_path / "days/2026-01-05")
    with pytest.raises(RuntimeError, match=r"rows must be given once: got those of window 2026-01-02 again"):
        train_folders(tmp_path)


def test_a_day_whose_labels_are_alike_has_no_auc_and_is_trained_on(tmp_path: Path) -> None:
    for number in range(3):
        write_day(tmp_path / "days", number, label=0.0 if number == 1 else None)
    metrics = train_folders(tmp_path, *published(tmp_path))
    assert metrics["steps"] == 30
    own = [record for record in records(tmp_path / "run/demo") if "val/unseen" in record][1]
    assert "val/auc" not in own
    assert "val/ne" not in own
    assert own["val/positives"] == 0
    assert own["val/logloss"] > 0
    assert metrics["progressive/auc"] == metrics[f"windows/{DAYS[2]}/val/auc"]
    progress = read_progress(str(tmp_path / "run/demo/checkpoints/step-00000030"))
    line = told(replace(progress, windows=progress.windows[:2]))
    assert line.startswith(f"val/logloss {own['val/logloss']:.6g}  val/unseen ")
    assert line.endswith("; the labels of all 600 rows are 0, so the window has no AUC")
    assert {path.name for path in (tmp_path / "published").iterdir()} == {"base-0000", "delta-0001", "delta-0002"}


def test_a_first_day_whose_labels_are_alike_is_refused(tmp_path: Path) -> None:
    write_day(tmp_path / "days", 0, label=0.0)
    with pytest.raises(RuntimeError, match="must have both classes: got 0 positives in 600 rows; look at the label"):
        train_folders(tmp_path)


def test_a_run_may_begin_with_another_one_s_model(tmp_path: Path) -> None:
    train(tmp_path / "first", 3)
    metrics = train(tmp_path / "next", 1, f"--start-from={tmp_path}/first/run/demo", "--seed=0")
    alone = train(tmp_path / "alone", 1)
    assert "val/auc" not in alone
    assert alone["val/unseen"] == 1
    assert "val/unseen" not in metrics  # nobody knows which ids the other run has seen
    assert metrics["val/auc"] > 0.58  # a model that has learned nothing has .5
    assert json.loads((tmp_path / "next/run/demo/config.json").read_text())["start_from"]
    refused = (
        r"must hold model\..* of shape .*; begin with a run of the same model, or .* --top .* from .*/demo/config.json"
    )
    with pytest.raises(RuntimeError, match=refused):
        train(tmp_path / "wider", 1, f"--start-from={tmp_path}/first/run/demo", "--bottom", "16", "4")
