"""Peak memory of a preparation does not grow with the file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

from tests.datasets import criteo_files

PREPARE = """
import resource, sys
import pyarrow as pa
from dlrm_torchrec.datasets.criteo import KAGGLE_ROWS, criteo_raw_spec
from dlrm_torchrec.datasets.prepare import Source, prepare
from dlrm_torchrec.datasets.raw_criteo import CriteoReader
from dlrm_torchrec.datasets.splits import Whole

source = Source(path=sys.argv[1], reader=CriteoReader(block_bytes=1 << 18), assignment=Whole("train"))
spec = criteo_raw_spec("x", KAGGLE_ROWS, sys.argv[3])
manifest = prepare(spec, [source], sys.argv[2], row_group_rows=4096)
print(manifest.splits["train"].rows, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def peak(folder: Path, repeats: int, encoding: str) -> tuple[int, int]:
    """Rows prepared and peak resident KiB, in a process of its own."""
    piece = criteo_files.content(np.random.default_rng(0), 1000)
    path = folder / f"{repeats}.txt"
    with path.open("wb") as file:
        for _ in range(repeats):
            file.write(piece)
    command = [sys.executable, "-c", PREPARE, str(path), str(folder / f"{encoding}{repeats}"), encoding]
    rows, kib = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return int(rows), int(kib)


def test_peak_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    for encoding in ("hash", "vocab"):
        (few, small), (many, large) = (peak(tmp_path, repeats, encoding) for repeats in (20, 160))
        assert (few, many) == (20_000, 160_000)
        growth = (tmp_path / "160.txt").stat().st_size - (tmp_path / "20.txt").stat().st_size
        assert growth > 24 << 20
        assert (large - small) * 1024 < growth / 3
