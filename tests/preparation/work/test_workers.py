"""Tasks shared out among processes, and what becomes of them when one of the processes goes wrong."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from dlrm_torchrec.preparation.work.workers import Report, Task, run_tasks
from tests.recipe import ROOT


def note(folder: Path, name: str, report: Report) -> None:
    (folder / name).write_text(str(os.getpid()))
    report(2, 10)


def notes(folder: Path, count: int) -> list[Task]:
    return [Task(f"note {i}", 10, partial(note, folder, str(i))) for i in range(count)]


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_every_task_is_done_once_and_reported(tmp_path: Path, workers: int) -> None:
    seen: list[tuple[int, int]] = []
    run_tasks(notes(tmp_path, 30), workers, lambda *counts: seen.append(counts))
    assert [sum(part) for part in zip(*seen, strict=True)] == [60, 300]
    processes = {path.read_text() for path in tmp_path.iterdir()}
    assert len(list(tmp_path.iterdir())) == 30
    assert (str(os.getpid()) in processes) == (workers == 1)
    assert len(processes) <= workers


def slow(folder: Path, report: Report) -> None:
    try:
        while True:
            report(0, 0)
            time.sleep(0.01)
    finally:
        (folder / "ended").write_text("")


def fail(error: Exception, report: Report) -> None:
    report(0, 0)
    time.sleep(0.2)
    raise error


class OddError(Exception):
    pass


@pytest.mark.parametrize("error", [ValueError("one sentence"), OSError(28, "full", "file"), OddError("odd")])
def test_an_error_of_a_task_is_raised_and_the_others_are_stopped(tmp_path: Path, error: Exception) -> None:
    tasks = [Task("slow", 1, partial(slow, tmp_path)), Task("bad", 1, partial(fail, error))]
    with pytest.raises(type(error), match=re.escape(str(error))) as raised:
        run_tasks(tasks, 2, lambda *_: None)
    assert (tmp_path / "ended").exists()  # it could put its things away
    notes = "".join(getattr(raised.value, "__notes__", []))
    assert ("in fail" in notes) == isinstance(error, OddError)


def end(how: str, _: Report) -> None:
    os.kill(os.getpid(), signal.SIGKILL) if how == "killed" else os._exit(3)


@pytest.mark.parametrize(("how", "fate"), [("killed", "was killed by SIGKILL"), ("exited", "ended with exit code 3")])
def test_a_worker_that_dies_is_named_with_what_it_did(tmp_path: Path, how: str, fate: str) -> None:
    tasks = [*notes(tmp_path, 4), Task("rows 5 to 9 of day_1", 1, partial(end, how)), *notes(tmp_path, 4)]
    expected = (
        rf"worker [01] \(process \d+\) must live until it has finished rows 5 to 9 of day_1: it {fate}; if .* out"
    )
    with pytest.raises(ChildProcessError, match=expected):
        run_tasks(tasks, 2, lambda *_: None)


ORPHANS = """
import os, sys
from functools import partial
from pathlib import Path
from tests.preparation.work.test_workers import slow
from dlrm_torchrec.preparation.work.workers import Task, run_tasks

def begin(folder, report):
    (folder / str(os.getpid())).write_text("")
    slow(folder, report)

tasks = [Task("slow", 1, partial(begin, Path(sys.argv[1]))) for _ in range(3)]
run_tasks(tasks, 3, lambda *_: None)
"""


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_workers_end_when_their_main_process_is_killed(tmp_path: Path) -> None:
    main = subprocess.Popen([sys.executable, "-c", ORPHANS, str(tmp_path)], cwd=ROOT)
    while len(list(tmp_path.iterdir())) < 3:
        assert main.poll() is None
        time.sleep(0.01)
    workers = [int(path.name) for path in tmp_path.iterdir()]
    assert all(map(alive, workers))
    main.kill()
    main.wait()
    deadline = time.monotonic() + 20
    while any(map(alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, workers))
