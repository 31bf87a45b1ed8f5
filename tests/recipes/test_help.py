"""``--help`` of every recipe: it needs no torch, and says of every option what it is."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_type_hints

import pytest

from dlrm_torchrec.schema import DatasetSpec
from tests.recipe import ROOT, load_recipe
from tests.test_docs import script

RECIPES = sorted(path.stem for path in (ROOT / "recipes").glob("*.py"))
TRAINING = [recipe for recipe in RECIPES if recipe.startswith("train_")]
MOST_FIRST = 16  # options before the first heading
RUNNER = Path(__file__).with_name("without_torch.py")


def run(recipe: str, *arguments: str, columns: int = 1000) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(RUNNER), f"recipes/{recipe}.py", *arguments]
    environment = {**os.environ, "COLUMNS": str(columns)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)


def notes(config: type) -> Iterator[tuple[str, str]]:
    """Every field that is an option, and the sentence that says what it is."""
    types = get_type_hints(config)
    for name, note in script("recipe_pages").field_notes(config).items():
        if types[name] is not DatasetSpec:
            yield name, note
            if dataclasses.is_dataclass(types[name]):
                yield from notes(types[name])


@pytest.mark.parametrize("recipe", RECIPES)
def test_help_needs_no_torch_and_says_of_every_option_what_it_is(recipe: str) -> None:
    page = run(recipe, "--help")
    assert page.returncode == 0, page.stderr
    words = " ".join(re.sub("[\u2500-\u257f]", " ", page.stdout).split())
    described = list(notes(load_recipe(recipe).Config))
    assert len(described) >= 5
    assert [(name, note) for name, note in described if not re.fullmatch(r"[A-Z0-9].*\.", note)] == []
    assert [(name, note) for name, note in described if note not in words] == []


@pytest.mark.parametrize("recipe", TRAINING)
def test_the_options_that_people_change_come_first(recipe: str) -> None:
    page = run(recipe, "--help", columns=80).stdout
    first = re.findall("^\u2502 *(--[a-z.-]+)", page[: page.index("tables options")], re.MULTILINE)
    assert first[0] == "--data"
    assert len(first) <= MOST_FIRST
    assert not any("." in option for option in first)


def test_a_mistake_is_answered_without_torch() -> None:
    wrong = run("train_dlrm", "--batch-sise", "3")
    assert wrong.returncode == 2
    assert "--batch-size" in wrong.stderr
    assert "no torch here" not in wrong.stderr
