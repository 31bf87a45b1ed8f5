"""SIGKILL at random moments, and SIGTERM: the same command resumes, and the final result is equal bit for bit."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.recipe import ROOT, records

STEPS, BATCH = 60, 256


def command(folder: Path, *options: str) -> list[str]:
    return [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "recipes/train_dlrm.py",
        "demo", f"--rows={STEPS * BATCH}", f"--batch-size={BATCH}", f"--run-dir={folder}", "--log.every=5",
        "--eval-every=20", "--checkpoint.every=2", *options,
    ]  # fmt: skip


def start(folder: Path, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(folder, *options), cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def finish(process: subprocess.Popen[str]) -> dict[str, float]:
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    metrics = json.loads(out.splitlines()[-1])
    del metrics["samples_per_s"]
    return metrics


def workers(agent: subprocess.Popen[str]) -> list[int]:
    """Process ids of the agent's ranks."""
    children = Path(f"/proc/{agent.pid}/task/{agent.pid}/children")
    return [int(pid) for pid in children.read_text().split()] if children.exists() else []


def wait_until_training(agent: subprocess.Popen[str], folder: Path, after: int) -> bool:
    """True once a checkpoint newer than ``after`` steps is under way; False when the run ended first."""
    while agent.poll() is None:
        saved = [int(path.name[5:]) for path in folder.glob("demo/checkpoints/step-*")]
        if any(step > after for step in saved):
            return True
        time.sleep(0.01)
    return False


def newest(folder: Path) -> int:
    return max((int(p.parent.name[5:]) for p in folder.glob("demo/checkpoints/*/checkpoint.json")), default=0)


def kill_and_restart(folder: Path, kills: int, seed: int, *options: str) -> dict[str, float]:
    """Metrics of a run in which a random rank was killed ``kills`` times at random moments, also during saves."""
    random_moment = random.Random(seed)
    for _ in range(kills):
        agent = start(folder, *options)
        if wait_until_training(agent, folder, newest(folder)):
            time.sleep(random_moment.uniform(0, 0.4))
            ranks = workers(agent)
            if ranks:
                os.kill(random_moment.choice(ranks), signal.SIGKILL)
        agent.communicate(timeout=240)
    return finish(start(folder, *options))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """Final metrics of the undisturbed run."""
    return finish(start(tmp_path_factory.mktemp("whole")))


def test_killed_run_ends_like_an_undisturbed_one(tmp_path: Path, whole: dict[str, float]) -> None:
    assert kill_and_restart(tmp_path / "killed", 2, 0) == whole


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("options", [[], ["--checkpoint.asynchronous", "--checkpoint.keep=1"]])
def test_ten_kills(tmp_path: Path, options: list[str], whole: dict[str, float]) -> None:
    assert kill_and_restart(tmp_path / "killed", 10, 1, *options) == whole


def test_sigterm_saves_and_exits_cleanly(tmp_path: Path, whole: dict[str, float]) -> None:
    options = ["--checkpoint.every=0"]
    agent = start(tmp_path / "stopped", *options)
    while not (tmp_path / "stopped/demo/metrics.jsonl").exists() or not records(tmp_path / "stopped/demo"):
        assert agent.poll() is None
        time.sleep(0.01)
    for rank in workers(agent)[:1]:  # one rank only: the others learn of it
        os.kill(rank, signal.SIGTERM)
    _, err = agent.communicate(timeout=120)
    assert agent.returncode == 0, err
    assert "stopped by SIGTERM; run the same command again to resume" in err
    assert 0 < newest(tmp_path / "stopped") < STEPS
    assert finish(start(tmp_path / "stopped", *options)) == whole


def test_elastic_restart_continues(tmp_path: Path, whole: dict[str, float]) -> None:
    agent = subprocess.Popen(
        [*command(tmp_path / "killed")[:5], "--max-restarts=2", *command(tmp_path / "killed")[5:]],
        cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert wait_until_training(agent, tmp_path / "killed", 0)
    os.kill(workers(agent)[0], signal.SIGKILL)
    assert finish(agent) == whole
