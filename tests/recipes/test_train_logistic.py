"""recipes/train_logistic.py: its model is a logistic regression, which other tools take like any other model."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from torchmetrics.functional.classification import binary_auroc

from tests.distributed import run_ranks
from tests.prepared import write_prepared
from tests.recipe import load_recipe, records, run_recipe

SMALL = ["demo", "--rows=163840", "--eval-every=0", "--log.every=10"]


def way(metrics: dict[str, float]) -> float:
    """How far from AUC 0.5 to the teacher's."""
    return (metrics["val/auc"] - 0.5) / (metrics["teacher/auc"] - 0.5)


def test_learns_alike_on_one_and_two_ranks(tmp_path: Path) -> None:
    losses = []
    for ranks in (1, 2):
        options = ["--sharding.kind=row_wise", f"--run-dir={tmp_path}/{ranks}"]
        assert way(run_recipe("train_logistic", [*SMALL, *options], ranks)) > 0.8
        losses.append([r["train/loss"] for r in records(tmp_path / f"{ranks}/demo") if "train/loss" in r])
    assert losses[1] == pytest.approx(losses[0], rel=5e-5)


def quantised(run: Path) -> dict[str, float]:
    tool = load_recipe("quantize_dlrm")
    return tool.main(tool.Config(recipe="train_logistic", run=str(run), max_auc_loss=0.01))


def test_it_finds_the_weight_that_made_the_labels_and_can_be_quantised(tmp_path: Path) -> None:
    """The labels follow 3 x alone, so no model can be better than ranking by x."""
    data = write_prepared(tmp_path / "data", {"train": [[3_000]], "val": [[1_000]]})
    metrics = run_recipe("train_logistic", ["demo", f"--data={data}", f"--run-dir={tmp_path}/runs"], 1)
    val = pq.read_table(data / "val/part-0.parquet")
    best = binary_auroc(torch.tensor(val["x"].to_numpy()), torch.tensor(val["click"].to_numpy()).long()).item()
    assert best - 0.01 < metrics["val/auc"] < best + 0.005
    assert 0.9 < metrics["val/calibration"] < 1.1
    served = run_ranks(1, quantised, tmp_path / "runs/demo", join=False)[0]
    assert served["val/auc"] == pytest.approx(metrics["val/auc"], abs=2e-3)
