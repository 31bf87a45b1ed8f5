"""The training recipes as one family: the same options, and loops that differ only where they must.

``family/<recipe>.diff`` is what ``dlrm-recipes diff train_dlrm <recipe>`` says of the loop, ``main``. To allow another
difference, write it there. train_dlrm_daily and train_hstu_daily are no members: their loops go over windows.
"""

from __future__ import annotations

import dataclasses

import pytest

from dlrm_torchrec.cli.compare import compare, parts
from dlrm_torchrec.recipe import TrainingConfig, load_training_recipe
from tests.recipe import ROOT

ALLOWED = ROOT / "tests" / "recipes" / "family"
RECIPES = sorted(
    {path.stem for path in (ROOT / "recipes").glob("train_*.py")} - {"train_dlrm_daily", "train_hstu_daily"}
)
LANDMARKS = [
    "build the model with its tables on meta, plan who holds which piece of them, and only then allocate them",
    "resume from the newest checkpoint of this run, or begin at step 0",
    "open the data at that step; what a rank reads is a function of the step alone",
    "train: the pipeline sends the next batch's ids while this batch is trained",
    "once in a while, and at the end: evaluate",
    "once in a while: save",
    "the end, or a signal: save, so that the same command goes on from here",
    "report",
]
COMMON = {
    *(field for field in TrainingConfig.__annotations__ if field[0] != "_"),
    *("eval_every", "clip_norm", "dense", "schedule", "log"),
}
SCREENFUL = 40


def text(recipe: str) -> str:
    return (ROOT / "recipes" / f"{recipe}.py").read_text()


def loop(recipe: str) -> str:
    """What tells the loop of a recipe from train_dlrm's."""
    lines = list(compare(text("train_dlrm"), text(recipe)))
    start = lines.index("== main") + 1 if "== main" in lines else len(lines)
    return "".join(f"{line}\n" for line in lines[start:])


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_loop_differs_only_where_it_may(recipe: str) -> None:
    allowed = (ALLOWED / f"{recipe}.diff").read_text()
    assert loop(recipe) == allowed, f"main of {recipe} differs from train_dlrm's otherwise than it may:\n{loop(recipe)}"


def test_only_other_data_or_tables_may_change_a_loop() -> None:
    changed = [recipe for recipe in RECIPES if (ALLOWED / f"{recipe}.diff").read_text()]
    sequences = ["train_hstu", "train_hstu_next_item"]
    assert changed == ["train_dlrm_local_embeddings", *sequences, "train_mf", "train_neumf"]
    assert {path.stem for path in ALLOWED.iterdir()} == set(RECIPES)


@pytest.mark.parametrize("recipe", RECIPES)
def test_landmarks_lead_through_every_loop(recipe: str) -> None:
    lines = [line.strip() for line in parts(text(recipe))["main"]]
    assert [line[2:] for line in lines if line.startswith("# ")] == LANDMARKS


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_has_the_common_options(recipe: str) -> None:
    assert {field.name for field in dataclasses.fields(load_training_recipe(recipe).Config)} >= COMMON


@pytest.mark.parametrize(
    ("one", "other"),
    [("train_dlrm", recipe) for recipe in ("train_dcnv2", "train_deepfm", "train_dlrm_compositional", "train_fm")]
    + [("train_dlrm", "train_rmc"), ("train_mf", "train_neumf")],
)
def test_the_difference_of_two_models_is_a_screenful(one: str, other: str) -> None:
    assert 0 < len(list(compare(text(one), text(other)))) <= SCREENFUL
