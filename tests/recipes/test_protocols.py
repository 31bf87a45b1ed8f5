"""The presets of published protocols: what BARS published of its runs, and training on data of the same form."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import pytest
import torch
from torch import nn

from dlrm_torchrec.models.logistic_regression import _SCALE, DIM
from dlrm_torchrec.protocols import BARS, Data, Model, bars
from dlrm_torchrec.train.config import OptimizerConfig
from dlrm_torchrec.train.optimizers import CLASSES, arguments_of
from tests.data import bars_files, load_script
from tests.recipe import ROOT, load_recipe, run_recipe

RECIPES: dict[Model, str] = {
    "LR": "train_logistic",
    "FM": "train_fm",
    "DeepFM": "train_deepfm",
    "DCNv2": "train_dcnv2",
    "DLRM": "train_dlrm",
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[Data, str]:
    """Made-up rows in the forms of Criteo_x1 and of Criteo's train.txt, prepared as the real ones."""
    folder = tmp_path_factory.mktemp("bars")
    script: ModuleType = load_script(ROOT / "data/criteo/prepare.py")
    bars_files.write_x1(folder, {"train": 2000, "valid": 500, "test": 500}, seed=1)
    bars_files.write_train_txt(folder / "train.txt", 3000, seed=2)
    made: dict[Data, str] = {"x1": f"{folder}/x1", "x4": f"{folder}/x4"}
    val, test = ((str(folder / f"{stem}.csv"),) for stem in ("valid", "test"))
    x1: dict[str, Any] = {"input": (str(folder / "train.csv"),), "val": val, "test": test}
    script.main(script.Config(kind="x1", output=made["x1"], workers=1, **x1))
    script.main(script.Config(kind="x4", output=made["x4"], workers=1, input=(str(folder / "train.txt"),)))
    return made


def test_every_published_run_has_a_preset_with_its_settings() -> None:
    assert set(BARS) == {(data, model) for data in get_args(Data) for model in get_args(Model)} - {("x4", "DLRM")}
    for (data, model), run in BARS.items():
        preset = load_recipe(RECIPES[model]).PRESETS[f"criteo-{data}"]
        assert {name: getattr(preset, name) for name in bars(data, model)} == bars(data, model)
        assert preset.schedule.falls == tuple({"x1": 8058, "x4": 3668}[data] * epoch for epoch in run.falls)
        text = (ROOT / "recipes" / f"{RECIPES[model]}.py").read_text()
        assert f"AUC {run.auc:.4f}" in text.split(f'"criteo-{data}": ')[1].splitlines()[0]


def trained(config: OptimizerConfig, weights: int, scale: float) -> list[float]:
    """The weight of an id, ``scale`` times the sum of so many equal numbers, after each of 300 steps."""
    numbers = nn.Parameter(torch.full((weights,), 0.3 / (scale * weights), dtype=torch.float64))
    optimizer = CLASSES[config.kind]([numbers], **arguments_of(config))
    random = torch.Generator().manual_seed(0)
    found = []
    for step in range(300):
        optimizer.zero_grad()
        weight = scale * numbers.sum()
        gradient = torch.randn((), generator=random, dtype=torch.float64) * (step % 7 == 0)  # most batches lack the id
        (0.01 * gradient * weight).backward()
        optimizer.step()
        found.append(float(scale * numbers.detach().sum()))
    return found


@pytest.mark.parametrize("data", get_args(Data))
def test_a_weight_of_the_logistic_model_moves_as_in_bars(data: Data) -> None:
    theirs = OptimizerConfig(kind="adam", lr=0.001, weight_decay=BARS[data, "LR"].l2)
    expected = trained(theirs, 1, 1.0)
    assert trained(bars(data, "LR")["sparse"], DIM, _SCALE) == pytest.approx(expected, rel=1e-9)
    assert expected[0] - expected[-1] > 0.01


@pytest.mark.parametrize(("data", "model"), BARS)
def test_every_preset_trains(data: Data, model: Model, folders: dict[Data, str], tmp_path: Path) -> None:
    steps = 2 * {"x1": 4, "x4": 5}[data]
    options = ["--epochs=2", "--eval-every=0", "--schedule.falls=3", f"--data={folders[data]}", f"--run-dir={tmp_path}"]
    metrics = run_recipe(RECIPES[model], [f"criteo-{data}", *options, "--batch-size=500"], 1)
    assert metrics["steps"] == steps
    assert 0 < metrics["test/logloss"] < 1
    assert metrics["test/samples"] == {"x1": 500, "x4": 300}[data]


def test_the_page_says_what_was_published() -> None:
    page = (ROOT / "docs/reproduce.md").read_text()
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| `criteo-x")]
    found = {(row[0].strip("| `"), row[1].strip("`")): (row[2], row[3].strip(" |")) for row in rows}
    digits = {key: tuple(f"{value:.4f}"[1:] for value in (run.auc, run.log_loss)) for key, run in BARS.items()}
    assert found == {(f"criteo-{data}", RECIPES[model]): digits[data, model] for data, model in BARS}
