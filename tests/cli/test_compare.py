"""``dlrm-recipes diff ONE OTHER``: two recipes, part by part."""

from __future__ import annotations

from pathlib import Path

import pytest

from dlrm_torchrec.cli.compare import compare
from dlrm_torchrec.cli.main import main

ONE = '''"""Train one model."""

from package import Old, kept


class Config:
    dim: int = 16  # Columns.
    seed: int = 0


PRESETS = {"demo": Config(), "large": Config()}


def build(cfg):
    return Old(cfg.dim)


def main(cfg):
    # first things first
    kept()

    # train
    for _ in range(3):
        step(1)
        step(2)
'''
OTHER = (
    ONE.replace("one model", "another model")
    .replace("Old", "New")
    .replace('"large"', '"small"')
    .replace("dim: int = 16", "dim: int = 32")
    .replace("        step(2)\n", "        average()\n")
)


def test_each_part_that_differs_has_a_heading_and_changes_of_a_loop_their_landmark() -> None:
    assert list(compare(ONE, OTHER)) == [
        *("== imports", "- package.Old", "+ package.New"),
        *("== presets", "- large", "+ small"),
        *("== Config", "-     dim: int = 16  # Columns.", "+     dim: int = 32  # Columns."),
        *("== build", "-     return Old(cfg.dim)", "+     return New(cfg.dim)"),
        *("== main", "  # train", "-         step(2)", "+         average()"),
    ]


def test_words_of_the_docstring_and_values_of_presets_are_no_difference() -> None:
    assert (
        list(compare(ONE, ONE.replace("one model", "it").replace('"large": Config()', '"large": Config(seed=1)'))) == []
    )


def test_the_command_takes_names_and_files(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["diff", "train_dlrm", "train_fm"]) == 0
    changes = capsys.readouterr().out.splitlines()
    assert "+     model = FactorizationMachine(tables, len(spec.dense))" in changes
    assert "== main" not in changes
    path = tmp_path / "mine.py"
    path.write_text(ONE)
    assert main(["diff", str(path), str(path)]) == 0
    assert capsys.readouterr().out == "no difference in options, presets, imports, model and loop\n"
    assert main(["diff", "train_dlrm", "train_dlmr"]) == 2
    assert "did you mean train_dlrm?" in capsys.readouterr().err
