"""The recipes on one CUDA device: the same losses as on CPU, every optimizer, exact resume."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from dlrm_torchrec.datasets.synthetic.specs import demo_spec
from dlrm_torchrec.train.timing.stopwatch import PARTS
from tests.distributed import run_ranks
from tests.recipe import records, run_recipe

pytestmark = pytest.mark.gpu

STEPS, BATCH = 20, 256
ARGUMENTS = ["demo", f"--rows={STEPS * BATCH}", f"--batch-size={BATCH}", "--log.every=1", "--eval-every=10"]
ARGUMENTS += ["--schedule.decay-steps=0"]


def losses(folder: Path) -> list[float]:
    return [record["train/loss"] for record in records(folder / "demo") if "train/loss" in record]


def run_on_cpu(name: str, arguments: list[str]) -> None:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    from tests.recipe import _run

    _run(name, arguments)


@pytest.mark.parametrize("kind", ["table_wise", "row_wise", "column_wise", "data_parallel"])
def test_losses_equal_those_of_the_cpu(tmp_path: Path, kind: str) -> None:
    options = [*ARGUMENTS, "--sparse.kind=adagrad", "--dense.kind=sgd", "--dense.lr=0.1", f"--sharding.kind={kind}"]
    run_recipe("train_dlrm", [*options, f"--run-dir={tmp_path}/gpu"], 1)
    run_ranks(1, run_on_cpu, "train_dlrm", [*options, f"--run-dir={tmp_path}/cpu"], join=False)
    assert losses(tmp_path / "gpu") == pytest.approx(losses(tmp_path / "cpu"), rel=1e-5)


@pytest.mark.parametrize(
    ("speed", "tolerance"), [("exact", 1e-4), ("tf32", 5e-3)]
)  # Adam divides small gradients by their own size, which enlarges what float32 rounds
def test_losses_of_fused_adam_are_those_of_the_cpu(tmp_path: Path, speed: str, tolerance: float) -> None:
    options = [*ARGUMENTS, "--sparse.kind=adagrad", "--dense.kind=adam", "--dense.lr=0.001", f"--speed={speed}"]
    run_recipe("train_dlrm", [*options, f"--run-dir={tmp_path}/gpu"], 1)
    run_ranks(1, run_on_cpu, "train_dlrm", [*options, f"--run-dir={tmp_path}/cpu"], join=False)
    assert losses(tmp_path / "gpu") == pytest.approx(losses(tmp_path / "cpu"), rel=tolerance)
    assert json.loads((tmp_path / "gpu/demo/config.json").read_text())["speed"] == [speed]


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad", "rowwise_adagrad", "adam"])
def test_resumed_run_equals_uninterrupted_one(tmp_path: Path, optimizer: str) -> None:
    options = [*ARGUMENTS, f"--sparse.kind={optimizer}", "--sparse.lr=0.02", "--checkpoint.asynchronous"]
    run_recipe("train_dlrm", [*options, f"--run-dir={tmp_path}/whole"], 1)
    half = [f"--rows={STEPS // 2 * BATCH}" if option.startswith("--rows") else option for option in options]
    run_recipe("train_dlrm", [*half, f"--run-dir={tmp_path}/parts"], 1)
    run_recipe("train_dlrm", [*options, f"--run-dir={tmp_path}/parts"], 1)
    assert losses(tmp_path / "parts") == pytest.approx(losses(tmp_path / "whole"), rel=1e-6)


@pytest.mark.parametrize("recipe", ["train_dlrm", "train_dcnv2"])
@pytest.mark.parametrize("speed", ["tf32", "bf16", "exact", "auto"])
def test_demo_reaches_its_value(tmp_path: Path, recipe: str, speed: str) -> None:
    metrics = run_recipe(
        recipe, ["demo", "--rows=409600", "--eval-every=0", f"--speed={speed}", f"--run-dir={tmp_path}"], 1
    )
    assert (metrics["val/auc"] - 0.5) / (metrics["teacher/auc"] - 0.5) > 0.9


@pytest.mark.parametrize("kind", ["table_wise", "row_wise", "data_parallel"])
def test_a_timed_run_trains_the_same(tmp_path: Path, kind: str) -> None:
    options = [*ARGUMENTS, "--sparse.kind=adagrad", f"--sharding.kind={kind}"]
    run_recipe("train_dlrm", [*options, f"--run-dir={tmp_path}/plain"], 1)
    run_recipe("train_dlrm", [*options, "--log.timed", "5", "15", f"--run-dir={tmp_path}/timed"], 1)
    assert losses(tmp_path / "timed") == pytest.approx(losses(tmp_path / "plain"), rel=1e-6)
    found = json.loads((tmp_path / "timed/demo/step_times.json").read_text())
    (rank,) = found["ranks"]
    assert found["device"] == torch.cuda.get_device_name()
    assert all(rank["milliseconds"][part] > 0 for part in (*PARTS, "step"))
    weight_bytes = sum(4 * table.rows * table.dim for table in demo_spec().tables(dim=16))
    assert rank["weight_bytes"] == rank["optimizer_bytes"] == weight_bytes
    assert rank["peak_device_bytes"] >= 2 * weight_bytes
