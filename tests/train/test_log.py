"""What a run writes: config, records, the progress bar, the clock."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import sys
import termios
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torchrec.optim.keyed import KeyedOptimizerWrapper

from dlrm_torchrec.train.config import LogConfig, Schedule
from dlrm_torchrec.train.log import RunLog
from dlrm_torchrec.train.metrics.gates import TrainingError
from dlrm_torchrec.train.schedule import ScheduledLearningRate
from tests.distributed import here, run_ranks


def _two_windows(folder: str) -> None:
    log = RunLog(folder, LogConfig(every=2), here(), {"lr": 0.5})
    log.start(0, 5)
    for step in range(1, 6):
        log.step(step, torch.tensor(float(step + dist.get_rank())), 100)
    log.stop(5, is_over=True)


def test_losses_are_means_over_window_and_ranks(tmp_path: Path) -> None:
    run_ranks(2, _two_windows, str(tmp_path))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["train/loss"]) for line in lines] == [(2, 2.0), (4, 4.0), (5, 5.5)]
    assert json.loads((tmp_path / "config.json").read_text()) == {"lr": 0.5}


def _resume(folder: str, step: int) -> None:
    RunLog(folder, LogConfig(), here(), {}).start(step, 10)


def test_records_after_the_checkpoint_are_dropped_and_half_lines_set_aside(tmp_path: Path) -> None:
    lines = ['{"step": 2, "train/loss": 1}\n', '{"step": 4, "train/loss": 2}\n', '{"step": 6, "tra']
    (tmp_path / "metrics.jsonl").write_text("".join(lines))
    run_ranks(1, _resume, str(tmp_path), 3)
    assert (tmp_path / "metrics.jsonl").read_text() == lines[0]
    assert (tmp_path / "metrics.unreadable").read_text() == f"{lines[2]}\n"


def _what_a_finished_run_says(folder: str) -> str:
    shown = io.StringIO()
    with contextlib.redirect_stderr(shown):
        RunLog(folder, LogConfig(), here(), {}).start(10, 10)
    return shown.getvalue()


def test_a_finished_run_says_so(tmp_path: Path) -> None:
    shown = run_ranks(1, _what_a_finished_run_says, str(tmp_path))[0]
    assert "holds a finished run of 10 steps; choose another --run-dir to train again, or train on with more" in shown


def _without_tensorboard(folder: str) -> None:
    sys.modules["torch.utils.tensorboard"] = None  # type: ignore[assignment]  # an import of it fails
    RunLog(folder, LogConfig(tensorboard=True), here(), {})


def test_tensorboard_that_is_not_installed_is_named(tmp_path: Path) -> None:
    message = "TensorBoard must be installed for --log.tensorboard: got .*; pip install tensorboard"
    with pytest.raises(RuntimeError, match=message):
        run_ranks(1, _without_tensorboard, str(tmp_path))


def _closing(folder: str, last: int) -> tuple[str, str]:
    told, printed = io.StringIO(), io.StringIO()
    with contextlib.redirect_stderr(told), contextlib.redirect_stdout(printed):
        log = RunLog(folder, LogConfig(every=2), here(), {})
        log.start(0, 4)
        for step in range(1, last + 1):
            log.step(step, torch.tensor(0.5), 10)
        log.stop(last, is_over=last == 4)
        log.finish({"val/auc": 0.75})
    return told.getvalue(), printed.getvalue()


@pytest.mark.parametrize(
    ("last", "said"), [(4, "val/auc 0.7500; took"), (2, "stopped at step 2 of 4, nothing is saved")]
)
def test_the_last_words_are_for_people_and_the_last_line_for_programs(tmp_path: Path, last: int, said: str) -> None:
    told, printed = run_ranks(1, _closing, str(tmp_path), last)[0]
    assert "step 2 of 4, 50 %, about 1 s left  train/loss 0.5  samples_per_s" in told
    assert told.splitlines()[-1].startswith(said)
    assert json.loads(printed).keys() == {"val/auc", "samples_per_s"}


def _loss_of_one_rank(folder: str, value: float) -> None:
    log = RunLog(folder, LogConfig(every=1), here(), {})
    log.start(0, 1)
    log.step(1, torch.tensor(value if dist.get_rank() else 0.5), 10)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_on_one_rank_stops_all(tmp_path: Path, value: float) -> None:
    with pytest.raises(
        RuntimeError, match=r"training loss must be finite: got (nan|inf) between steps 1 and 1; look at"
    ):
        run_ranks(2, _loss_of_one_rank, str(tmp_path), value)
    assert not (tmp_path / "metrics.jsonl").read_text()
    assert issubclass(TrainingError, ValueError)


def _rate(folder: str) -> float:
    log = RunLog(folder, LogConfig(), here(), {})
    log.start(0, 2)
    time.sleep(0.2)
    log.step(1, torch.tensor(0.5), 100)
    with log.paused():
        time.sleep(1.0)
    log.stop(1, is_over=True)
    time.sleep(1.0)
    return log.finish({})["samples_per_s"]


def test_the_clock_counts_training_alone(tmp_path: Path) -> None:
    assert 100 / 1.0 < run_ranks(1, _rate, str(tmp_path))[0] <= 100 / 0.2


def _on_a_terminal(folder: str) -> str:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    os.dup2(theirs, 2)
    log = RunLog(folder, LogConfig(every=1), here(), {})
    log.start(0, 3)
    for step in (1, 2, 3):
        log.step(step, torch.tensor(0.5), 10)
    log.stop(3, is_over=True)
    log.finish({})
    os.set_blocking(ours, False)
    time.sleep(0.2)
    return os.read(ours, 100_000).decode()


def test_a_terminal_gets_a_progress_bar(tmp_path: Path) -> None:
    shown = run_ranks(1, _on_a_terminal, str(tmp_path))[0]
    assert "3/3" in shown
    assert "train/loss 0.5" in shown


SCHEDULED = {
    "schedule": {"warmup_steps": 4, "decay_start": 4, "decay_steps": -1, "power": 1.0},
    "sparse": {"lr": 0.5},
    "dense": {"lr": 0.125},
}


def _with_rates(folder: str) -> tuple[list[list[float]], int]:
    log = RunLog(folder, LogConfig(every=1), here(), SCHEDULED)
    held = bytearray(100_000_000 * dist.get_rank())
    weights = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    rates = [SCHEDULED[name]["lr"] for name in ("sparse", "dense")]
    groups = [{"params": [weight], "lr": rate} for weight, rate in zip(weights, rates, strict=True)]
    optimizer = KeyedOptimizerWrapper(dict(zip("ab", weights, strict=True)), lambda _: torch.optim.SGD(groups))
    learning_rate = ScheduledLearningRate(optimizer, Schedule(**SCHEDULED["schedule"]), 9)  # type: ignore[arg-type]
    log.start(0, 9)
    used = []
    for step in range(1, 10):
        learning_rate.set(step - 1)
        used.append([group["lr"] for group in optimizer.param_groups])
        log.step(step, torch.tensor(0.5), 100)
    log.model(_Summary())
    return used, len(held)


class _Summary:
    def __str__(self) -> str:
        return "tables hold the parameters"

    def to_json(self) -> dict[str, list[int]]:
        return {"parts": [1]}


def test_records_hold_the_learning_rates_that_are_used_and_the_memory_of_ranks(tmp_path: Path) -> None:
    used, _ = run_ranks(2, _with_rates, str(tmp_path))[0]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [[line["lr/tables"], line["lr/dense"]] for line in lines] == used
    for line in lines:
        assert line["bytes/fullest_rank"] - line["bytes/emptiest_rank"] > 50_000_000
    assert json.loads((tmp_path / "model.json").read_text()) == {"parts": [1]}
