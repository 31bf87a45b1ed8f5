"""SIGKILL at random moments, and SIGTERM: the same command resumes, and the final result is equal bit for bit."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from tests.distributed import run_ranks
from tests.launched import Launched, is_running, launched
from tests.recipe import ROOT, _run, records

STEPS, BATCH = 60, 256


def arguments(folder: Path, *options: str) -> list[str]:
    return [
        "demo", f"--rows={STEPS * BATCH}", f"--batch-size={BATCH}", f"--run-dir={folder}", "--log.every=5",
        "--eval-every=20", "--checkpoint.every=2", *options,
    ]  # fmt: skip


Ended = tuple[dict[str, float], str]  # a rank's metrics, and what it wrote to stderr


def train(folder: Path, options: list[str]) -> Ended:
    """Train as one rank, whose process is found by the name of a file in ``folder``."""
    (folder / f"rank{os.environ['RANK']}.{os.getpid()}").touch()
    with contextlib.redirect_stderr(io.StringIO()) as written:
        metrics = _run("train_dlrm", arguments(folder, *options))
    return without_speed(metrics), written.getvalue()


def without_speed(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if name != "samples_per_s"}


def finish(folder: Path, *options: str) -> dict[str, float]:
    """Final metrics of a run that nothing interrupts from now on."""
    return run_ranks(2, train, folder, list(options), join=False)[0][0]


def interrupt(
    folder: Path, options: list[str], when: Callable[[], bool], rank: int, kind: signal.Signals, delay_s: float = 0.0
) -> Future[list[Ended]]:
    """Train, and send a signal to one of two ranks some time after ``when`` holds, if the run has not ended by then."""
    for earlier in folder.glob("rank*"):
        earlier.unlink()
    with ThreadPoolExecutor(1) as thread:
        training = thread.submit(run_ranks, 2, train, folder, options, join=False)
        while not (training.done() or (list(folder.glob(f"rank{rank}.*")) and when())):
            time.sleep(0.01)
        time.sleep(delay_s)
        if not training.done():
            (process,) = folder.glob(f"rank{rank}.*")
            os.kill(int(process.suffix[1:]), kind)
    return training


def newest(folder: Path) -> int:
    return max((int(p.parent.name[5:]) for p in folder.glob("demo/checkpoints/*/checkpoint.json")), default=0)


def has_begun(folder: Path, step: int) -> bool:
    """Whether a checkpoint of this step or a later one is written, or being written."""
    return any(int(path.name[5:]) >= step for path in folder.glob("demo/checkpoints/step-*"))


def kill(folder: Path, kills: int, seed: int, *options: str) -> int:
    """How many times a random rank of a run was killed at a random moment, also during saves, of ``kills`` tries."""
    draw, killed = random.Random(seed), 0
    for _ in range(kills):
        begun = partial(has_begun, folder, newest(folder) + draw.randint(1, 5))
        training = interrupt(
            folder, list(options), begun, draw.randrange(2), signal.SIGKILL, delay_s=draw.uniform(0, 0.1)
        )
        if training.exception() is not None:  # of this death, or of the connection that it cut
            assert re.search("died with exit code -9|by peer", str(training.exception()))
            killed += 1
    return killed


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """Final metrics of the undisturbed run."""
    return finish(tmp_path_factory.mktemp("whole"))


def test_killed_run_ends_like_an_undisturbed_one(tmp_path: Path, whole: dict[str, float]) -> None:
    assert kill(tmp_path, 2, 0) >= 1
    assert finish(tmp_path) == whole


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("options", [[], ["--checkpoint.asynchronous", "--checkpoint.keep=1"]])
def test_ten_kills(tmp_path: Path, options: list[str], whole: dict[str, float]) -> None:
    assert kill(tmp_path, 10, 1, *options) >= 5
    assert finish(tmp_path, *options) == whole


def test_sigterm_saves_and_exits_cleanly(tmp_path: Path, whole: dict[str, float]) -> None:
    options, log = ["--checkpoint.every=0"], tmp_path / "demo/metrics.jsonl"
    training = interrupt(  # one rank only: the others learn of it
        tmp_path, options, lambda: log.exists() and bool(records(tmp_path / "demo")), 1, signal.SIGTERM
    )
    assert "stopped by SIGTERM, and saved" in training.result()[0][1]
    assert 0 < newest(tmp_path) < STEPS
    assert finish(tmp_path, *options) == whole


@contextlib.contextmanager
def begun(run: Path, folder: Path, max_restarts: int = 0) -> Iterator[Launched]:
    """A run of two ranks in ``run`` that torchrun's agent has started, and that has begun to save."""
    next_save = partial(has_begun, run, newest(run) + 1)
    words = [str(ROOT / "recipes/train_dlrm.py"), *arguments(run), "--speed", "exact"]
    with launched(words, 2, folder, max_restarts=max_restarts) as command:
        while not next_save():
            assert command.is_running(), command.err()
            time.sleep(0.01)
        yield command


def result(command: Launched) -> dict[str, float]:
    assert command.wait(240) == 0, command.err()
    return without_speed(json.loads(command.out().splitlines()[-1]))


def test_elastic_restart_continues(tmp_path: Path, whole: dict[str, float]) -> None:
    with begun(tmp_path, tmp_path / "life", max_restarts=2) as command:
        os.kill(command.ranks()[0], signal.SIGKILL)
        assert result(command) == whole


STOPPED = "stopped by SIGINT, and saved"


def test_ctrl_c_saves_and_the_same_command_resumes_whoever_is_still_there(
    tmp_path: Path, whole: dict[str, float]
) -> None:
    with begun(tmp_path, tmp_path / "first") as command:
        os.kill(command.launcher, signal.SIGINT)
        assert command.wait(240) != 0
        assert STOPPED in command.err()
        assert 0 < newest(tmp_path) < STEPS
    with begun(tmp_path, tmp_path / "second") as command:
        command.process.kill()
        with begun(tmp_path, tmp_path / "third") as follower:  # at once
            assert result(follower) == whole
        assert len(command.ranks()) == 2
        assert not any(map(is_running, command.ranks().values()))


def torchrun(folder: Path) -> subprocess.Popen[str]:
    """The command that a person types; it has begun to save when this returns."""
    begun = partial(has_begun, folder, newest(folder) + 1)
    agent = subprocess.Popen(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"),
            *("recipes/train_dlrm.py", *arguments(folder), "--speed", "exact"),
        ],
        cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    while not begun():
        assert agent.poll() is None
        time.sleep(0.01)
    return agent


def children(agent: subprocess.Popen[str]) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split()]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_same_by_torchrun_itself(tmp_path: Path, whole: dict[str, float]) -> None:
    agent = torchrun(tmp_path)
    agent.send_signal(signal.SIGINT)
    _, err = agent.communicate(timeout=240)
    assert agent.returncode != 0
    assert STOPPED in err
    assert 0 < newest(tmp_path) < STEPS

    agent = torchrun(tmp_path)
    ranks = children(agent)
    agent.kill()
    follower = torchrun(tmp_path)
    out, err = follower.communicate(timeout=240)
    assert without_speed(json.loads(out.splitlines()[-1])) == whole, err
    assert len(ranks) == 2
    assert not any(map(is_running, ranks))
    agent.communicate()
