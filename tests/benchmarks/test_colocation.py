"""Where colocation.py puts processes, how it compares them, and a short run of real ones."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from tests.recipe import ROOT

SCRIPT: dict[str, Any] = runpy.run_path(str(ROOT / "benchmarks/colocation.py"))


@pytest.mark.parametrize(
    ("cores", "expected"),
    [
        ([3], [(3,), (3, 3)]),
        ([0, 1], [(0,), (0, 1), (0, 0), (0, 1, 0, 1)]),
        ([0, 2, 4], [(0,), (0, 2), (0, 2, 4), (0, 0), (0, 2, 4, 0)]),
        ([0, 1, 2, 3, 4], [(0,), (0, 1), (0, 1, 2), (0, 1, 2, 3), (0, 0)]),
    ],
)
def test_processes_have_cores_of_their_own_and_then_share(cores: list[int], expected: list[tuple[int, ...]]) -> None:
    assert SCRIPT["placements"](cores) == expected


def answers(each_s: float, core_s: float, count: int, checksum: float = 1.0) -> Any:
    return SCRIPT["Answers"]([each_s] * count, [core_s] * count, checksum)


def test_ratios_are_those_to_the_first_process_alone() -> None:
    found = SCRIPT["compared"]([answers(0.03, 0.02, 10), answers(0.3, 0.3, 5)], answers(0.01, 0.01, 30), 0.3)
    assert found == pytest.approx((3.0, 2.0, (10 / 0.3 + 5 / 1.5) / (30 / 0.3)))


class Pipe:
    """A process whose answer depends on whether it is alone."""

    def __init__(self, checksum: float) -> None:
        self.checksum = checksum

    def send(self, order: Any) -> None:
        pass

    def recv(self) -> Any:
        return answers(0.1, 0.1, 2, self.checksum)


def test_answers_that_differ_are_refused() -> None:
    args = Namespace(batch=1, placements=[(0,), (0, 0)], rounds=1, seconds=0.1)
    SCRIPT["measure"](Path("int8"), None, [Pipe(1.0), Pipe(1.0)], args)
    with pytest.raises(ValueError, match=r"must be those alone: got sums \[1\.0, 1\.5\] for int8"):
        SCRIPT["measure"](Path("int8"), None, [Pipe(1.0), Pipe(1.5)], args)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_short_run() -> None:
    short = ["--shapes", "rmc3", "--forms", "int8", "--rows-share", "1e-4", "--batch", "2", "--seconds", "0.01"]
    command = [sys.executable, "benchmarks/colocation.py", *short, "--rounds", "1"]  # its processes import it
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    cores = len(os.sched_getaffinity(0))
    assert done.stdout.startswith(f"{cores} cores\n")
    rows = re.findall(r"^\| rmc3 \| int8 \| (\d) \| (\d) \|", done.stdout, re.MULTILINE)
    placements = SCRIPT["placements"](list(range(cores)))[1:]
    assert rows == [(str(len(each)), str(len(set(each)))) for each in placements]
