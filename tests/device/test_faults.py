"""The tests of this folder find faults that only a GPU would show; see ``faults.py``."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.device.faults import FAULTS, Fault
from tests.recipe import ROOT

PARTS = ("dlrm_torchrec", "recipes", "tests", "data", "setup.cfg")


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project."""
    folder = tmp_path_factory.mktemp("copy")
    for name in PARTS:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.what)
def test_its_place_is_there(fault: Fault) -> None:
    assert (ROOT / fault.file).read_text().count(fault.right) == 1


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.what)
def test_it_is_found(fault: Fault, copy: Path) -> None:
    place = copy / fault.file
    right = place.read_text()
    place.write_text(right.replace(fault.right, fault.wrong))
    try:
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-x",
            "-p",
            "no:cacheprovider",
            fault.test,
            "-k",
            fault.keyword,
        ]
        environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
        ran = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)
    finally:
        place.write_text(right)
    assert ran.returncode == pytest.ExitCode.TESTS_FAILED, ran.stdout + ran.stderr
    assert re.search(r"\d+ failed", ran.stdout), ran.stdout
