"""When checkpoints are due, which are kept, and what is refused before training."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from dlrm_torchrec.train.checkpoints import memory
from dlrm_torchrec.train.checkpoints.folder import checkpoint_path, complete_steps
from dlrm_torchrec.train.checkpoints.memory import available_bytes
from dlrm_torchrec.train.checkpoints.progress import Progress
from dlrm_torchrec.train.config import CheckpointConfig
from tests.distributed import run_ranks
from tests.train.checkpoints.small import SmallRun


class _Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now_s = time.monotonic()

    def __call__(self) -> float:
        return self.now_s


def _overdue(folder: str) -> list[bool]:
    with mock.patch.object(time, "monotonic", _Clock()) as clock:
        run = SmallRun(folder, minutes=1)
        answers = []
        for wait_s in (59, 2):
            clock.now_s += wait_s
            answers.append(run.checkpoints.overdue())
        save = run.checkpoints.tensors

        def slow(*arguments: Any) -> dict[str, dict[str, Any]]:
            clock.now_s += 3  # a save of 3 s may come once in 150 s
            return save(*arguments)

        run.checkpoints.tensors = slow
        run.save(1)
        for wait_s in (100, 49, 2):
            clock.now_s += wait_s
            answers.append(run.checkpoints.overdue())
        for options in ({"minutes": 0}, {"every": 5}):
            other = SmallRun(folder, **options)
            clock.now_s += 1e6
            answers.append(other.checkpoints.overdue())
        return answers


def test_saves_by_time_take_at_most_a_fiftieth(tmp_path: Path) -> None:
    assert run_ranks(1, _overdue, str(tmp_path)) == [[False, True, False, False, True, False, False]]


def _due(folder: str) -> list[list[int]]:
    """Steps out of 12 at which each kind of run saves, with a best validation at 4 and time over at 7."""
    found = []
    for options in ({}, {"every": 5}, {"every": 5, "best": True}, {"best": True}):
        run = SmallRun(folder, **options)
        progress = [Progress(identity={}, lanes=1, step=step, best_step=4 * (step >= 4)) for step in range(1, 13)]
        found.append([each.step for each in progress if run.checkpoints.due(each, overdue=each.step == 7)])
    return found


def test_due_by_steps_by_time_or_at_a_new_best(tmp_path: Path) -> None:
    assert run_ranks(1, _due, str(tmp_path)) == [[[7], [5, 10], [4, 5, 10], [4, 7]]]


def _keep_the_best(folder: str) -> tuple[list[int], list[int], Any, list[int]]:
    run = SmallRun(folder, keep=2, best=True)
    for step in range(1, 5):
        run.save(step, best_step=min(step, 2))
    kept = run.checkpoints.steps()
    again = SmallRun(folder, keep=2, best=True)  # another process, which goes on
    newest = again.checkpoints.newest()
    again.save(5, best_step=2)
    still = again.checkpoints.steps()
    again.save(6, best_step=6)
    return kept, still, newest, again.checkpoints.steps()


def test_the_best_is_kept_beside_the_newest_and_found(tmp_path: Path) -> None:
    folder = str(tmp_path)
    ((kept, still, newest, last), other) = run_ranks(2, _keep_the_best, folder)
    assert (kept, still, last) == ([2, 3, 4], [2, 4, 5], [5, 6])
    assert newest == other[2]
    assert (newest.step, newest.best_step) == (4, 2)
    assert checkpoint_path(folder, "best") == f"{folder}/step-00000006"


def _save_without_best(folder: str, best_steps: list[int]) -> None:
    run = SmallRun(folder)
    for step, best_step in enumerate(best_steps, start=1):
        run.save(step, best_step=best_step)


def test_a_best_that_was_not_saved_is_told(tmp_path: Path) -> None:
    folder = str(tmp_path)
    run_ranks(1, _save_without_best, folder, [1, 1])
    assert checkpoint_path(folder, "best") == f"{folder}/step-00000001"
    run_ranks(1, _save_without_best, folder, [1, 1, 3, 9])
    assert complete_steps(folder) == [1, 2, 3, 4]
    with pytest.raises(
        ValueError, match=r"must hold the checkpoint of the best validation, step 9: got those of steps"
    ):
        checkpoint_path(folder, "best")
    run_ranks(1, _save_without_best, str(tmp_path / "none"), [0])
    with pytest.raises(ValueError, match=r"must hold a validation: got those of steps \[1\]; name another run or step"):
        checkpoint_path(str(tmp_path / "none"), "best")


def _stop_before_the_first_step(folder: str) -> list[int]:
    """What runs load that begin again after one that was stopped at step 0."""
    SmallRun(folder).save(0)
    again = SmallRun(folder)
    loaded = [again.load()]
    again.save(3)
    return [*loaded, SmallRun(folder).load()]


def test_a_run_that_was_stopped_before_its_first_step_begins_anew(tmp_path: Path) -> None:
    """At step 0, optimizers have no state that could be restored."""
    assert run_ranks(1, _stop_before_the_first_step, str(tmp_path)) == [[-1, 3]]


def _load_asynchronous(folder: str, available: int | None) -> tuple[str, list[str]]:
    run = SmallRun(folder, asynchronous=True)
    with mock.patch.object(memory, "available_bytes", return_value=available):
        try:
            run.load()
        except ValueError as error:
            return str(error), run.said
    return "", run.said


def test_asynchronous_saves_without_memory_are_refused_before_training(tmp_path: Path) -> None:
    copies = 2 * 4 * 4 * (20 * 30 + 30)  # of two ranks on this host
    for refused, _ in run_ranks(2, _load_asynchronous, str(tmp_path), copies - 1):
        assert re.fullmatch(
            r"memory for asynchronous checkpoints must hold a copy of what the ranks of .* save, 0\.0 GB: got 0\.0 GB; "
            "leave out --checkpoint.asynchronous",
            refused,
        )
    for available in (copies, None):
        (first, said), (second, unsaid) = run_ranks(2, _load_asynchronous, str(tmp_path), available)
        assert (first, second, unsaid) == ("", "", [])
        assert len(said) == 1
        assert said[0].startswith("an asynchronous checkpoint copies what the ranks of ")


def test_available_memory_is_that_of_the_container(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 100 kB\nMemAvailable:     80 kB\n")
    assert available_bytes(tmp_path, tmp_path) == 80 * 1024
    for name, text in (("max", "max"), ("current", "30000"), ("stat", "file 9\ninactive_file 1000\n")):
        (tmp_path / f"memory.{name}").write_text(text)
    assert available_bytes(tmp_path, tmp_path) == 80 * 1024
    (tmp_path / "memory.max").write_text("50000\n")
    assert available_bytes(tmp_path, tmp_path) == 50000 - 30000 + 1000
    assert available_bytes(tmp_path / "elsewhere") is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": -3}, "steps between checkpoints must be at least 0: got -3; 0 means by time"),
        ({"minutes": -1}, "minutes between checkpoints must be at least 0: got -1; 0 means only at the end"),
        ({"minutes": float("nan")}, "minutes between checkpoints must be at least 0: got nan"),
        ({"early_stop": -1}, "validations without gain must be at least 0: got -1; 0 means no early stop"),
        ({"keep": 0}, "number of checkpoints to keep must be at least 1: got 0; raise it"),
    ],
)
def test_numbers_below_the_least_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CheckpointConfig(**options)
