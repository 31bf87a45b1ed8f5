"""recipes/train_deepfm.py: what it reaches and costs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from tests.recipe import load_recipe, run_recipe

SMALL = ["demo", "--rows=81920", "--eval-every=0"]


def test_learns_quickly(tmp_path: Path) -> None:
    metrics = run_recipe("train_deepfm", [*SMALL, f"--run-dir={tmp_path}"], 2)
    assert (metrics["val/auc"] - 0.5) / (metrics["teacher/auc"] - 0.5) > 0.5


@pytest.mark.parametrize(
    ("preset", "parameters", "products"), [("demo", 425_186, 19_360), ("criteo-kaggle", 405_644_282, 492_000)]
)
def test_the_docstrings_cost(preset: str, parameters: int, products: int) -> None:
    recipe = load_recipe("train_deepfm")
    cfg = recipe.PRESETS[preset]
    model, _ = recipe.build(cfg, cfg.shape, 1, torch.device("meta"))
    assert sum(weight.numel() for weight in model.parameters()) == parameters
    assert sum(layer.weight.numel() for layer in model.modules() if isinstance(layer, nn.Linear)) == products
    assert f"{parameters:,}" in (recipe.__doc__ or "")
    assert f"{products:,}" in (recipe.__doc__ or "")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("ranks", [1, 2])
def test_demo_reaches_its_value(tmp_path: Path, ranks: int) -> None:
    metrics = run_recipe("train_deepfm", ["demo", f"--run-dir={tmp_path}"], ranks, timeout_s=800)
    assert (metrics["val/auc"] - 0.5) / (metrics["teacher/auc"] - 0.5) >= 0.975
