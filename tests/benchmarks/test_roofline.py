"""A short run of roofline.py, and its bare reading of rows against a sum in numpy."""

from __future__ import annotations

import re
import runpy
from typing import Any

import numpy as np
import pytest

from tests.recipe import ROOT
from tests.scripts import run_python

SCRIPT: dict[str, Any] = runpy.run_path(str(ROOT / "benchmarks/roofline.py"))
SHORT = ["--shapes", "rmc3", "--sizes", "2", "--rounds", "1", "--rows-share", "1e-4"]


@pytest.mark.parametrize("dim", [16, 32, 64])
def test_reading_touches_every_line_of_the_rows(dim: int) -> None:
    draw = np.random.default_rng()
    table = draw.integers(-1000, 1000, (50, dim), dtype=np.int32)
    rows = draw.integers(0, 50, 70)
    assert SCRIPT["reader"](dim)(rows, table) == table[rows][:, ::16].sum()


def test_it_counts_bytes_and_operations() -> None:
    done = run_python(["benchmarks/roofline.py", *SHORT], ROOT)
    assert done.returncode == 0, done.stderr
    assert re.match(r"one core: [\d.]+ GB/s copied in order, \d+ Gop/s in a product\n", done.stdout)
    lookups, mlps = ([cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines()[-2:])
    assert lookups[:3] == ["rmc3", "lookups", "2"]
    assert mlps[:3] == ["rmc3", "MLPs", "2"]
    assert lookups[4] == "0.25"
    layers = [(2560, 1024), (1024, 256), (256, 32), (352, 512), (512, 256), (256, 1)]
    products, weights = sum(a * b for a, b in layers), sum((a + 1) * b for a, b in layers)
    moved = 4 * weights + 2 * 4 * sum(a + b for a, b in layers)
    assert mlps[4] == f"{2 * 2 * products / moved:.2f}"


def test_sums_that_are_not_those_of_torch_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SCRIPT["Lookups"], "correct", lambda _: False)
    monkeypatch.setattr("sys.argv", ["roofline.py", *SHORT])
    monkeypatch.setitem(SCRIPT["main"].__globals__, "limits", lambda _: (1.0, 1.0))
    for changed in ("os.sched_setaffinity", "torch.set_num_threads", "torch.manual_seed"):  # of this process
        monkeypatch.setattr(changed, lambda *_: None)
    with pytest.raises(SystemExit, match="error: lookups of rmc3 are not the sums of torch"):
        SCRIPT["main"]()
