"""recipes/train_rmc.py: what it reaches, and that its presets are the published shapes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.recipe import load_recipe, run_recipe


@pytest.mark.parametrize(("interaction", "ranks"), [("cat", 2), pytest.param("dot", 1, marks=pytest.mark.slow)])
def test_learns_quickly(tmp_path: Path, interaction: str, ranks: int) -> None:
    options = ["--rows=81920", "--eval-every=0", f"--interaction={interaction}", f"--run-dir={tmp_path}"]
    metrics = run_recipe("train_rmc", ["demo", *options], ranks)
    assert (metrics["val/auc"] - 0.5) / (metrics["teacher/auc"] - 0.5) > 0.5


# Tables, rows, dim, ids per bag and MLPs from DeepRecSys' models/configs/dlrm_rm*.json and dlrm's
# bench/dlrm_s_benchmark.sh; the first width is that of the dense columns, the top MLP's input follows from the rest.
PUBLISHED = {
    "rmc1": (8, 4_000_000, 32, 80, "128-64-32", "288-256-64-1", "cat"),
    "rmc2": (32, 500_000, 64, 120, "256-128-64", "2112-128-64-1", "cat"),
    "rmc3": (10, 2_000_000, 32, 20, "2560-1024-256-32", "352-512-256-1", "cat"),
    "dlrm-s": (8, 1_000_000, 64, 100, "512-512-64", "100-1024-1024-1024-1", "dot"),
}


def short(number: int) -> str:
    if number < 1e6:
        return f"{number / 1e3:.0f} K"
    return f"{number / 1e6:.1f} M" if number < 1e8 else f"{number / 1e9:.2f} G"


@pytest.mark.parametrize("preset", PUBLISHED)
def test_presets_are_the_published_shapes(preset: str) -> None:
    recipe = load_recipe("train_rmc")
    cfg = recipe.PRESETS[preset]
    model, tables = recipe.build(cfg, cfg.shape, 1, torch.device("meta"))
    number, rows, dim, lookups, bottom, top, interaction = PUBLISHED[preset]
    found = [(table.num_embeddings, table.embedding_dim) for table in tables.embedding_bag_configs()]
    assert found == [(rows, dim)] * number
    assert {feature.pooling_factor for feature in cfg.shape.sparse} == {lookups}
    assert cfg.interaction == interaction
    for part, widths in ((model.model.dense_arch, bottom), (model.model.over_arch, top)):
        layers = [layer for layer in part.modules() if isinstance(layer, nn.Linear)]
        assert "-".join(str(width) for width in (layers[0].in_features, *(x.out_features for x in layers))) == widths
    products = sum(layer.weight.numel() for layer in model.modules() if isinstance(layer, nn.Linear))
    parameters = sum(weight.numel() for weight in model.parameters())
    costs = [f"{short(products)}\\b", f"{short(4 * number * lookups * dim)}B", f"{short(parameters)}[;:]"]
    assert re.search(f"{preset}[^;]*" + "[^;]*".join(costs), " ".join((recipe.__doc__ or "").split()))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("ranks", [1, 2])
def test_demo_reaches_its_value(tmp_path: Path, ranks: int) -> None:
    metrics = run_recipe("train_rmc", ["demo", f"--run-dir={tmp_path}"], ranks, timeout_s=800)
    assert (metrics["val/auc"] - 0.5) / (metrics["teacher/auc"] - 0.5) >= 0.975
