"""Peak memory of a preparation, all its processes together, does not grow with the file."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.preparation import criteo_files

PREPARE = """
import sys
from dlrm_torchrec.datasets.criteo import KAGGLE_ROWS, criteo_raw_spec
from dlrm_torchrec.preparation.prepare import Source, prepare
from dlrm_torchrec.preparation.readers.raw_criteo import CriteoReader
from dlrm_torchrec.preparation.splits import Whole

source = Source(path=sys.argv[1], reader=CriteoReader(block_bytes=1 << 18), assignment=Whole("train"))
spec = criteo_raw_spec("x", KAGGLE_ROWS, sys.argv[3])
manifest = prepare(spec, [source], sys.argv[2], row_group_rows=4096, workers=2, unit_bytes=4 << 20)
print(manifest.splits["train"].rows)
"""


def resident_bytes(process: int) -> int:
    """Memory of a process and its children, what they share counted once (proportional set size)."""
    total = 0
    for path in (Path(f"/proc/{process}"), *children(process)):
        try:
            lines = (path / "smaps_rollup").read_text().splitlines()
        except OSError:  # it has just ended
            continue
        total += sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))
    return total


def children(process: int) -> list[Path]:
    try:
        return [
            Path(f"/proc/{child}") for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()
        ]
    except OSError:
        return []


def peak(folder: Path, repeats: int, encoding: str) -> tuple[int, int, int]:
    """Rows prepared, peak bytes, and the most processes seen."""
    piece = criteo_files.content(np.random.default_rng(0), 1000)
    path = folder / f"{repeats}.txt"
    with path.open("wb") as file:
        for _ in range(repeats):
            file.write(piece)
    command = [sys.executable, "-c", PREPARE, str(path), str(folder / f"{encoding}{repeats}"), encoding]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    most_bytes = most_processes = 0
    while process.poll() is None:
        most_bytes = max(most_bytes, resident_bytes(process.pid))
        most_processes = max(most_processes, 1 + len(children(process.pid)))
        time.sleep(0.01)
    assert process.returncode == 0
    assert process.stdout is not None
    return int(process.stdout.read()), most_bytes, most_processes


@pytest.mark.parametrize("encoding", ["hash", "vocab"])
def test_peak_memory_does_not_grow_with_the_file(tmp_path: Path, encoding: str) -> None:
    (few, small, _), (many, large, processes) = (peak(tmp_path, repeats, encoding) for repeats in (40, 240))
    assert (few, many, processes) == (40_000, 240_000, 3)
    growth = (tmp_path / "240.txt").stat().st_size - (tmp_path / "40.txt").stat().st_size
    assert growth > 35 << 20
    print(small >> 20, large >> 20)
    assert large - small < growth / 3
    assert large < 400 << 20
