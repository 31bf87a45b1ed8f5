"""The lines that memory_traffic.py counts, against plain loops; its counter; a short run."""

from __future__ import annotations

import mmap
import random
import runpy
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest

from tests.recipe import ROOT
from tests.scripts import run_python

SCRIPT: dict[str, Any] = runpy.run_path(str(ROOT / "benchmarks/memory_traffic.py"))
ROW_BYTES = {"fp32": 128, "fp16": 64, "int8": 36, "int4": 20}  # of 32 numbers; scale and offset have 4 bytes
PAGE, PAGES = mmap.PAGESIZE, 256


@pytest.fixture(scope="module")
def shape() -> Any:
    return SCRIPT["Shape"]("rmc3", 1e-4)  # 10 tables of 200 rows, dim 32, 20 ids


@pytest.mark.parametrize("kind", ROW_BYTES)
@pytest.mark.parametrize("frequent", [False, True])
def test_lines_are_those_that_an_lru_cache_lacks(shape: Any, kind: str, frequent: bool) -> None:
    batch, cached = 3, random.randrange(100, 1000)
    queries = [shape.ids(batch, frequent=frequent) for _ in range(4)]
    cache: OrderedDict[int, None] = OrderedDict()
    touched = missed = 0
    for number, ids in enumerate(queries):
        for table, own in enumerate(ids.tolist()):
            for row in own:
                begin = (200 * table + row) * ROW_BYTES[kind]
                for line in sorted({byte // 64 for byte in range(begin, begin + ROW_BYTES[kind])}):
                    touched += number >= 2
                    missed += number >= 2 and line not in cache
                    cache[line] = None
                    cache.move_to_end(line)
                    if len(cache) > cached:
                        cache.popitem(last=False)
    found = SCRIPT["count"](shape, kind, queries, batch=batch, cache_bytes=64 * cached)
    assert found.rows == 10 * 20 * ROW_BYTES[kind]
    assert found.lines == pytest.approx(64 * touched / (2 * batch))
    assert found.from_memory == pytest.approx(64 * missed / (2 * batch))
    layers = [(2560, 1024), (1024, 256), (256, 32), (352, 512), (512, 256), (256, 1)]
    weights, moved = sum((a + 1) * b for a, b in layers), sum(a + b for a, b in layers)
    assert found.in_all - found.from_memory == pytest.approx(4 * weights / batch + 4 * moved + 8 * 10 * 20)


def test_some_ids_are_frequent(shape: Any) -> None:
    most = [
        np.mean([np.bincount(own, minlength=200).max() / own.size for own in shape.ids(50, frequent=frequent)])
        for frequent in (False, True)
    ]
    assert most[0] < 0.02
    assert most[1] == pytest.approx(np.log(2) / np.log(201), abs=0.02)  # the most frequent one of 200, by Zipf's law


def test_a_counter_counts_what_a_thread_does(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        faults = SCRIPT["Counter"](kind=1, config=2)  # page faults, which the system counts
    except OSError:  # a machine that allows no counters at all
        assert SCRIPT["counter"]() is None
        assert "no hardware counters here: " in capsys.readouterr().out
        return
    fresh, before = mmap.mmap(-1, PAGES * PAGE), faults.value()
    for page in range(PAGES):
        fresh[page * PAGE] = 1
    assert PAGES <= faults.value() - before < 2 * PAGES


def test_rows_of_other_bytes_are_refused(shape: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SCRIPT["served"].__globals__, "row_bytes", lambda *_: 40)
    with pytest.raises(ValueError, match=r"rows must have the bytes that are counted: got \{128\} in fp32 tables"):
        SCRIPT["served"](shape)


def test_a_short_run() -> None:
    short = ["--shapes", "rmc3", "--rows-share", "1e-4", "--batch", "2", "--lookups", "1", "--rounds", "1"]
    done = run_python(["benchmarks/memory_traffic.py", *short], ROOT)
    assert done.returncode == 0, done.stderr
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in done.stdout.splitlines() if "| rmc3" in row]
    assert [row[1:4] for row in rows] == [
        [ids, kind, f"{200 * size / 1e3:.1f}"] for ids in ("uniform", "frequent") for kind, size in ROW_BYTES.items()
    ]
