"""Which recipes are installed, and what `ls` prints of them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dlrm_torchrec.cli import shipped
from dlrm_torchrec.cli.main import BAD_ARGUMENTS, main
from dlrm_torchrec.cli.shipped import Recipe, find, installed_recipes
from tests.recipe import ROOT

DOCSTRING = '''"""Train a model (arXiv 1906.00091) of two tables.

    torchrun --standalone --nproc_per_node 2 recipes/train_two.py big --lr 2   # two processes
    python recipes/train_two.py

It takes .5 minutes. Expected AUC of the
demo: .81 ± .002. Copy it.
"""
raise ImportError("an installed recipe is read, not imported")
'''


def test_a_recipe_is_described_by_its_docstring(tmp_path: Path) -> None:
    (tmp_path / "two.py").write_text(DOCSTRING)
    assert Recipe("train_two", tmp_path / "two.py").describe() == {
        "name": "train_two",
        "teaches": "Train a model (arXiv 1906.00091) of two tables.",
        "command": "dlrm-recipes run train_two --standalone --nproc_per_node 2 -- big --lr 2",
        "expected": "Expected AUC of the demo: .81 ± .002.",
    }


def test_a_script_without_docstring_is_described_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "bare.py").write_text("print()\n")
    bare = Recipe("bare", tmp_path / "bare.py").describe()
    assert bare == {"name": "bare", "teaches": "", "command": "", "expected": ""}


def test_recipes_and_data_preparation_are_installed() -> None:
    recipes = {path.stem for path in (ROOT / "recipes").glob("*.py")}
    prepare = {f"prepare_{path.parent.name}" for path in (ROOT / "data").glob("*/prepare.py")}
    assert set(installed_recipes()) == recipes | prepare
    assert {"train_dlrm", "prepare_criteo"} <= set(installed_recipes())
    for name, recipe in installed_recipes().items():
        assert recipe.text == recipe.path.read_text()
        described = recipe.describe()
        assert described["teaches"], name
        assert described["command"].startswith(f"dlrm-recipes run {name}"), name
        assert described["expected"] or not name.startswith("train_"), name


def test_the_name_that_was_meant_is_offered() -> None:
    with pytest.raises(ValueError, match=r"recipe must be one of .* got 'train_drlm'; did you mean train_dlrm"):
        find("train_drlm")
    with pytest.raises(ValueError, match="got 'x'; `dlrm-recipes ls` lists them"):
        find("x")


def test_ls_prints_what_the_recipes_say_of_themselves(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed == [recipe.describe() for recipe in installed_recipes().values()]
    assert main(["ls"]) == 0
    words = capsys.readouterr().out.split()
    assert words == [word for recipe in listed for text in recipe.values() for word in text.split()]


def test_without_a_command_the_recipes_are_listed_in_one_screen(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[: len(installed_recipes())]] == list(installed_recipes())
    assert len(lines) <= 27
    assert max(map(len, lines[: len(installed_recipes())])) <= 80
    assert list(installed_recipes())[:2] == ["train_dlrm", "train_dcnv2"]


def test_every_recipe_has_its_place_in_the_reading_order() -> None:
    assert {path.stem for path in (ROOT / "recipes").glob("*.py")} == set(shipped._READING_ORDER)


def test_a_bad_argument_is_one_sentence_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cp", "train_drlm"]) == BAD_ARGUMENTS == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("dlrm-recipes: recipe must be one of")
    assert printed.err.count("\n") == 1
    with pytest.raises(SystemExit) as stopped:
        main(["fetch"])
    assert stopped.value.code == BAD_ARGUMENTS


def test_ls_imports_nothing_that_takes_long() -> None:
    program = (
        "import sys; from dlrm_torchrec.cli.main import main; main(['ls'])\n"
        "assert not {'torch', 'numpy', 'tyro', 'pyarrow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, timeout=60)
