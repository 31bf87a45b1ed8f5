"""recipes/train_fm.py: what it reaches, costs, and takes of tables and ranks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.recipe import load_recipe, records, run_recipe

SMALL = ["demo", "--rows=81920", "--eval-every=0", "--log.every=5"]
COLUMNS = ["--sharding.kind=column_wise", "--sparse.kind=adagrad", "--sparse.lr=0.02"]


def way(metrics: dict[str, float]) -> float:
    """How far from AUC 0.5 to the teacher's."""
    return (metrics["val/auc"] - 0.5) / (metrics["teacher/auc"] - 0.5)


def test_learns_alike_on_one_and_two_ranks(tmp_path: Path) -> None:
    losses = []
    for ranks in (1, 2):
        options = ["--sharding.kind=row_wise", f"--run-dir={tmp_path}/{ranks}"]
        assert way(run_recipe("train_fm", [*SMALL, *options], ranks)) > 0.5
        losses.append([r["train/loss"] for r in records(tmp_path / f"{ranks}/demo") if "train/loss" in r])
    assert losses[1] == pytest.approx(losses[0], rel=5e-5)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(["--tables.kind=quotient_remainder", *COLUMNS], marks=pytest.mark.slow),
        pytest.param(
            ["--tables.kind=quotient_remainder", "--tables.operation=feature_generation"], marks=pytest.mark.slow
        ),
        pytest.param(["--tables.kind=mixed_dimension"], marks=pytest.mark.slow),
    ],
    ids=["mult", "feature generation", "mixed dims"],
)
def test_takes_tables_stored_in_other_ways(tmp_path: Path, options: list[str]) -> None:
    assert way(run_recipe("train_fm", [*SMALL, *options, f"--run-dir={tmp_path}"], 2)) > 0.5


@pytest.mark.parametrize(("preset", "parameters"), [("demo", 405_729), ("criteo-kaggle", 540_201_441)])
def test_the_docstrings_cost(preset: str, parameters: int) -> None:
    recipe = load_recipe("train_fm")
    cfg = recipe.PRESETS[preset]
    model, _ = recipe.build(cfg, cfg.shape, 1, torch.device("meta"))
    assert sum(weight.numel() for weight in model.parameters()) == parameters
    assert f"{parameters:,}" in (recipe.__doc__ or "")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("ranks", [1, 2])
def test_demo_reaches_its_value(tmp_path: Path, ranks: int) -> None:
    metrics = run_recipe("train_fm", ["demo", f"--run-dir={tmp_path}"], ranks, timeout_s=800)
    assert way(metrics) >= 0.96
