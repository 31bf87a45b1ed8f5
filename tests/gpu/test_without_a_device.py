"""Whoever asks for the GPU's tests alone, on a machine without a GPU, is told that none of them ran."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def test_a_machine_without_a_gpu() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "-m", "gpu"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    chosen = Path(__file__).with_name("test_int64_gpu.py")
    ran = subprocess.run([*command, str(chosen)], env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 5, ran.stdout + ran.stderr
    assert "SKIPPED [4] tests/gpu/test_int64_gpu.py" in ran.stdout
    assert "no CUDA device was found: none of the GPU's tests ran" in ran.stdout
    assert "passed" not in ran.stdout
