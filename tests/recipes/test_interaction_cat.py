"""recipes/train_dlrm.py --interaction cat: what it reaches and costs, compiled too."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from dlrm_torchrec.datasets.summary import Summary
from dlrm_torchrec.train.fit import fit_to_rows
from tests.recipe import load_recipe, records, run_recipe

SMALL = ["demo", "--interaction=cat", "--rows=81920", "--eval-every=0", "--log.every=5"]


def losses(folder: Path, ranks: int) -> list[float]:
    options = ["--sharding.kind=column_wise", "--sparse.kind=adagrad", "--sparse.lr=0.02", f"--run-dir={folder}"]
    metrics = run_recipe("train_dlrm", [*SMALL, *options], ranks)
    assert (metrics["val/auc"] - 0.5) / (metrics["teacher/auc"] - 0.5) > 0.5
    return [record["train/loss"] for record in records(folder / "demo") if "train/loss" in record]


def test_learns_quickly(tmp_path: Path) -> None:
    found = losses(tmp_path, 2)
    assert found[-1] < found[0] - 0.05


@pytest.mark.slow
def test_learns_alike_on_one_and_two_ranks(tmp_path: Path) -> None:
    assert losses(tmp_path / "two", 2) == pytest.approx(losses(tmp_path / "one", 1), rel=5e-5)


@pytest.mark.parametrize(
    ("preset", "parameters", "products"), [("demo", 420_657, 14_880), ("criteo-kaggle", 540_710_497, 507_648)]
)
def test_parameters_and_multiply_adds(preset: str, parameters: int, products: int) -> None:
    recipe = load_recipe("train_dlrm")
    shape = recipe.PRESETS[preset].shape
    cfg, _ = fit_to_rows(replace(recipe.PRESETS[preset], interaction="cat"), Summary(spec=shape))
    model, _ = recipe.build(cfg, cfg.shape, 1, torch.device("meta"))
    assert sum(weight.numel() for weight in model.parameters()) == parameters
    assert sum(layer.weight.numel() for layer in model.modules() if isinstance(layer, nn.Linear)) == products


@pytest.mark.slow
def test_compiled_parts_learn_alike(tmp_path: Path) -> None:
    plain, fast = (
        run_recipe("train_dlrm", [*SMALL, *options, f"--run-dir={tmp_path}/{len(options)}"], 1)
        for options in ([], ["--speed=compile"])
    )
    assert fast["val/auc"] == pytest.approx(plain["val/auc"], abs=0.001)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("ranks", [1, 2])
def test_demo_reaches_its_value(tmp_path: Path, ranks: int) -> None:
    metrics = run_recipe("train_dlrm", ["demo", "--interaction=cat", f"--run-dir={tmp_path}"], ranks, timeout_s=800)
    assert (metrics["val/auc"] - 0.5) / (metrics["teacher/auc"] - 0.5) >= 0.975
