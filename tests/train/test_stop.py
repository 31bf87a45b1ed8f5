"""Signals that stop a run: all ranks after the same step, with what is asked and found on the way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dlrm_torchrec.terminal.stopped import exit_code
from dlrm_torchrec.train import stop
from dlrm_torchrec.train.processes.printing import outlive_readers
from dlrm_torchrec.train.stop import StopRequest
from dlrm_torchrec.train.world import World
from tests.distributed import here, run_ranks
from tests.recipe import ROOT

Seen = tuple[list[int], int, int]  # steps after which a save was due, steps done, the exit code


def alone() -> World:
    control: Any = None
    return World(rank=0, size=1, local_size=1, device=torch.device("cpu"), control=control)


def _train(signals: dict[int, tuple[int, int]], overdue_at: list[int]) -> Seen:
    """Ten steps; ``signals`` gives, by step, the rank that gets a signal, and which."""
    world, step, due = here(), 0, list[int]()
    asked = list(overdue_at)
    for number in (signal.SIGINT, signal.SIGHUP):  # which a background job and nohup ignore
        signal.signal(number, signal.SIG_DFL)

    def overdue() -> bool:
        assert world.is_main
        return bool(asked) and step >= asked[0]

    with ExitStack() as at_end:
        request = StopRequest(replace(world, at_end=at_end), overdue)
        while step < 10 and not request.agreed():
            step += 1
            if signals.get(step, (-1, 0))[0] == world.rank:
                signal.raise_signal(signals[step][1])
            if request.overdue:
                due.append(step)
                asked[:1] = []
        request.settle()
    return due, step, exit_code()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("rank", [0, 1])
def test_all_ranks_stop_after_the_same_step(number: int, rank: int) -> None:
    (_, first, code), (_, second, silent) = run_ranks(2, _train, {4: (rank, number)}, [])
    assert first == second == 5  # the flag travels during a step
    assert (code, silent) == (128 + number, 0)


def test_a_save_that_is_overdue_is_due_once_on_all_ranks() -> None:
    saves = [seen[:2] for seen in run_ranks(3, _train, {}, [2, 5])]
    assert saves == [([4, 7], 10)] * 3


def test_one_process_stops_and_saves_in_the_step_that_is_asked_for(capfd: pytest.CaptureFixture[str]) -> None:
    before = [signal.getsignal(number) for number in stop.SIGNALS]
    with ExitStack() as at_end:
        request = StopRequest(replace(alone(), at_end=at_end), lambda: True)
        assert not request.agreed()
        assert request.overdue
        signal.raise_signal(signal.SIGTERM)
        assert request.agreed()
        request.settle()
        assert "run the same command again" not in capfd.readouterr().err  # it is not saved yet
    assert exit_code() == 143
    assert [signal.getsignal(number) for number in stop.SIGNALS] == before
    error = capfd.readouterr().err
    assert error == "stopped by SIGTERM, and saved\n"


def _stop_and_fail() -> None:
    with ExitStack() as at_end:
        request = StopRequest(replace(alone(), at_end=at_end))
        signal.raise_signal(signal.SIGTERM)
        assert request.agreed()
        raise OSError("disk is full")


def test_a_run_that_fails_to_save_promises_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    before = [signal.getsignal(number) for number in stop.SIGNALS]
    with pytest.raises(OSError, match="disk"):
        _stop_and_fail()
    assert "same command" not in capfd.readouterr().err
    assert [signal.getsignal(number) for number in stop.SIGNALS] == before
    assert exit_code() == 0


def test_ignored_signals_stay_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with ExitStack() as at_end:
            request = StopRequest(replace(alone(), at_end=at_end))
            signal.raise_signal(signal.SIGHUP)
            assert not request.agreed()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_another_thread_trains_without_handlers() -> None:
    before, found = signal.getsignal(signal.SIGTERM), list[object]()

    def train() -> None:
        found.extend([StopRequest(alone()).agreed(), signal.getsignal(signal.SIGTERM)])

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert found == [False, before]


PROGRAM = """
import signal, sys, time
from contextlib import ExitStack
import torch
from dlrm_torchrec.terminal.stopped import exit_code
from dlrm_torchrec.train import stop
from dlrm_torchrec.train.world import World
signal.signal(signal.SIGINT, signal.default_int_handler)  # the shell of a background job ignores it
with ExitStack() as at_end:
    world = World(rank=0, size=1, local_size=1, device=torch.device("cpu"), control=None, at_end=at_end)
    request = stop.StopRequest(world)
    print("ready", flush=True)
    while not request.agreed():
        time.sleep(0.01)
    print("saving", flush=True)
    time.sleep(float(sys.argv[1]))
    request.settle()
sys.exit(exit_code())
"""


def _start(save_s: float, **pipes: Any) -> subprocess.Popen[str]:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **pipes}
    words = [sys.executable, "-c", PROGRAM, str(save_s)]
    return subprocess.Popen(words, text=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, **pipes)


def test_a_second_interrupt_of_a_person_ends_at_once() -> None:
    process = _start(600)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)  # the same Ctrl-C, which a launcher passed on
    assert process.stdout.readline() == "saving\n"
    time.sleep(stop.TWICE_S + 0.2)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert error.splitlines() == [
        "SIGINT: this step ends, the run is saved, then it stops; press Ctrl-C again to end at once, unsaved",
        "ended by a second SIGINT, unsaved; the same command goes on from the last whole checkpoint",
    ]


def test_a_run_saves_when_the_reader_of_its_output_is_gone() -> None:
    process = _start(0)
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == "ready\n"
    process.stdout.close()  # as Ctrl-C ends the tee behind a pipe
    process.stderr.close()
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130


def test_a_full_disk_under_the_log_does_not_keep_a_run_from_saving(monkeypatch: pytest.MonkeyPatch) -> None:
    with Path("/dev/full").open("w", buffering=1) as full:
        monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises(OSError, match="No space"):
            print("x")
        outlive_readers()
        print("x", flush=True)
        stream = sys.stdout
        outlive_readers()
        assert sys.stdout is stream


class _Files:
    """Files of which this rank finds one damaged, or none, after some looks."""

    def __init__(self, fault: str, looks: int) -> None:
        self.text, self.looks, self.closed = fault, looks, False

    def fault(self) -> str:
        self.looks -= 1
        return self.text if self.looks < 0 else ""

    def wait(self, timeout_s: float) -> bool:
        assert timeout_s > 0
        return self.looks < 0

    def close(self) -> None:
        self.closed = True


def _train_on_files(bad_rank: int, looks: int, verify: bool) -> tuple[int, str, bool]:
    files = _Files("file b.parquet must be whole" if here().rank == bad_rank else "", looks)
    step = 0
    try:
        with ExitStack() as at_end:
            request = StopRequest(replace(here(), at_end=at_end), files=files, verify=verify)
            while step < 5 and not request.agreed():
                step += 1
            request.settle()
    except ValueError as error:
        return step, str(error), files.closed
    return step, "", files.closed


@pytest.mark.parametrize(("looks", "verify", "steps"), [(2, False, 3), (50, False, 5), (3, True, 0)])
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_damaged_file_on_one_rank_stops_all(looks: int, verify: bool, steps: int, ranks: int) -> None:
    for bad_rank in range(ranks):
        ends = run_ranks(ranks, _train_on_files, bad_rank, looks, verify)
        early = ranks == 1 and looks == 2  # one rank asks itself, without a message that travels during a step
        assert ends == [(steps - early, "file b.parquet must be whole", True)] * ranks


def test_whole_files_stop_nothing() -> None:
    assert run_ranks(2, _train_on_files, -1, 20, False) == [(5, "", True)] * 2


def _interrupted_while_verifying() -> tuple[bool, int]:
    with ExitStack() as at_end:
        request = StopRequest(replace(here(), at_end=at_end), files=_Files("", 1 << 60))
        if here().rank == 1:
            signal.raise_signal(signal.SIGTERM)
        request.settle()
        stopped = request.agreed()
    return stopped, exit_code()


def test_a_signal_ends_the_wait_for_verification() -> None:
    assert run_ranks(2, _interrupted_while_verifying) == [(True, 143), (True, 0)]
