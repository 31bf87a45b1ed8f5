"""A short run of int8_gemm.py, and layers that are farther from float64 than rounding explains."""

from __future__ import annotations

import runpy
from typing import Any

import pytest

from tests.recipe import ROOT
from tests.scripts import run_python

SCRIPT: dict[str, Any] = runpy.run_path(str(ROOT / "benchmarks/int8_gemm.py"))


def test_layers_are_those_of_the_presets() -> None:
    assert SCRIPT["layers_of"]("rmc1") == [(128, 64), (64, 32), (9 * 32, 256), (256, 64)]
    assert SCRIPT["layers_of"]("dlrm-s")[2] == (64 + 9 * 8 // 2, 1024)


@pytest.mark.parametrize("form", ["static", "dynamic"])
def test_a_layer_that_is_wrong_in_one_output_is_found(form: str) -> None:
    layer = SCRIPT["Layer"]((96, 40), 7)
    assert layer.correct(form)
    right = layer.forms[form]

    def wrong() -> Any:
        outputs = right()
        outputs[3, 5] += 1
        return outputs

    layer.forms[form] = wrong
    assert not layer.correct(form)


def test_a_short_run() -> None:
    short = ["--shapes", "rmc1", "--sizes", "1", "3", "--rounds", "1", "--layers"]
    done = run_python(["benchmarks/int8_gemm.py", *short], ROOT)
    assert done.returncode == 0, done.stderr
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in done.stdout.splitlines()[2:]]
    assert [row[:2] for row in rows[:3]] == [["rmc1 128 x 64", "1"], ["rmc1 128 x 64", "3"], ["rmc1 64 x 32", "1"]]
    assert {len(row) for row in rows} == {8}
