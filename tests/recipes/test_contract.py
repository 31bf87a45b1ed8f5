"""The contract of a recipe, dlrm_torchrec/recipe.py: ours keep it, and a copy that breaks it gets one sentence."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dlrm_torchrec.recipe import (
    load_judged_recipe,
    load_ranking_recipe,
    load_scoring_recipe,
    load_training_recipe,
    read_config,
)
from tests.recipe import ROOT

RECIPES = sorted(path.stem for path in (ROOT / "recipes").glob("train_*.py"))
# Those that rank items or go over windows, which have no labelled rows of splits, and those that read histories.
RANK_ITEMS = {"train_mf": "datasets.open", "train_neumf": "datasets.open",
              "train_hstu_next_item": "datasets.sequences.open"}  # fmt: skip
WITHOUT_STREAMS = {*RANK_ITEMS, "train_dlrm_daily", "train_hstu_daily"}
OF_SEQUENCES = {"train_hstu"}
ADVICE = r"Recipe in dlrm_torchrec/recipe.py says what it is for; copy it from train_dlrm$"


def copy(folder: Path, before: str, after: str) -> str:
    """The path of a copy of train_dlrm.py in which ``before`` was changed to ``after``."""
    text = (ROOT / "recipes" / "train_dlrm.py").read_text()
    assert before in text
    path = folder / "mine.py"
    path.write_text(text.replace(before, after))
    return str(path)


@pytest.mark.parametrize("recipe", RECIPES)
def test_ours_keep_it(recipe: str) -> None:
    assert load_training_recipe(recipe).PRESETS["demo"].seed == 0
    if recipe in WITHOUT_STREAMS:
        with pytest.raises(
            ValueError, match=rf"^recipe must define open_streams: got '{recipe}', which does.*{ADVICE}"
        ):
            load_ranking_recipe(recipe)
        with pytest.raises(ValueError, match=rf"^recipe must (define open_streams|train on splits): got '{recipe}', "):
            load_scoring_recipe(recipe)
    elif recipe in OF_SEQUENCES:
        opened = vars(load_scoring_recipe(recipe))["open_sequences"]
        assert opened.__module__ == "dlrm_torchrec.datasets.sequences.open"
    else:
        assert load_scoring_recipe(recipe)
        assert load_ranking_recipe(recipe).open_streams.__module__ == "dlrm_torchrec.datasets.open"


@pytest.mark.parametrize(("recipe", "module"), RANK_ITEMS.items())
def test_those_that_rank_items_are_judged(recipe: str, module: str, tmp_path: Path) -> None:
    opener = "open_next_items" if "sequences" in module else "open_interactions"
    assert vars(load_judged_recipe(recipe))[opener].__module__ == f"dlrm_torchrec.{module}"
    path, field = tmp_path / "mine.py", "samples" if "sequences" in module else "columns"
    path.write_text(re.sub(rf"\b{field}(?=: .* = |=)", "other", (ROOT / f"recipes/{recipe}.py").read_text()))
    with pytest.raises(ValueError, match=rf"^Config of recipe '.*' must have a field {field} of type .*: got none; "):
        load_judged_recipe(str(path))


def test_a_copy_that_keeps_the_names_keeps_it(tmp_path: Path) -> None:
    path = copy(tmp_path, "    batch_size: int = 2048", "    my_own: float = 0.5\n    batch_size: int = 512")
    assert load_ranking_recipe(path).Config().batch_size == 512


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("def build(", "def make(", r"^recipe must define build: got '.*mine\.py', which does not; Training"),
        ("def main(", "def run(", r"^recipe must define main: got"),
        ("PRESETS = {", "CONFIGS = {", r"^recipe must define PRESETS: got"),
        (
            "world_size: int, device: torch.device) ->",
            "device: torch.device) ->",
            r"^build of recipe '.*' must take \(cfg, spec, world_size, device\): got \(cfg: .*device: .*\).*; Training",
        ),
        (
            "    tables: TablesConfig = TablesConfig()",
            "    storage: TablesConfig = TablesConfig()",
            r"^Config of recipe '.*' must have a field tables of type .*TablesConfig: got none; Training",
        ),
        (
            "    seed: int = 0",
            '    seed: str = "0"',
            r"^Config of recipe '.*' must have a field seed of type int: got str; Training",
        ),
        (
            '    "demo": automatic(Config()),',
            '    "demo": None,',
            r"^PRESETS of recipe '.*' must map names to Config: got",
        ),
    ],
)
def test_a_copy_that_breaks_it_gets_one_sentence(tmp_path: Path, before: str, after: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"{message}.*{ADVICE}"):
        load_training_recipe(copy(tmp_path, before, after))


def test_a_recipe_of_sequences_says_how_they_are_cut(tmp_path: Path) -> None:
    text = (ROOT / "recipes" / "train_hstu.py").read_text()
    path = tmp_path / "mine.py"
    path.write_text(re.sub(r"\bsamples(?=: SamplesConfig =|=)", "cut", text))
    message = r"^Config of recipe '.*' must have a field samples of type .*SamplesConfig: got none; SequenceRecipe in"
    with pytest.raises(ValueError, match=message):
        load_scoring_recipe(str(path))


def test_tools_are_no_training_recipes() -> None:
    with pytest.raises(ValueError, match=r"^recipe must define build: got 'compare_embeddings', which does not; .*"):
        load_training_recipe("compare_embeddings")


def test_a_folder_without_a_config_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"run must be the folder of a run, with config.json: got .*; name one under"):
        read_config(load_training_recipe("train_dlrm"), str(tmp_path))


@pytest.mark.parametrize("text", ["", '{"rows": ', "null", "[" * 100_000, '{"bottom": 7}', '{"tables": {"kind": "?"}}'])
def test_a_config_that_is_not_one_of_this_recipe_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config.json must be the config of a run of this recipe: got .*; name"):
        read_config(load_training_recipe("train_dlrm"), str(tmp_path))
