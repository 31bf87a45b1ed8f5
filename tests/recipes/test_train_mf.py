"""recipes/train_mf.py: what it reaches, and that ranks, sharding and resuming do not change it."""

from __future__ import annotations

from pathlib import Path

import pytest

from dlrm_torchrec.inference.predictor import Predictor
from tests.recipe import load_recipe, records, run_recipe


def test_it_ranks_better_than_popularity_and_alike_on_other_ranks_after_a_resume(tmp_path: Path) -> None:
    options = ["demo", "--log.every=1", "--eval-every=0", "--schedule.decay-steps=0", "--batch-size=640", "--dim=8"]
    options += ["--sparse.kind=adagrad", "--dense.kind=sgd"]
    whole = run_recipe("train_mf", [*options, "--rows=128000", f"--run-dir={tmp_path}/whole"], 1)
    run_recipe("train_mf", [*options, "--rows=64000", f"--run-dir={tmp_path}/parts"], 1)
    parts = run_recipe(
        "train_mf", [*options, "--rows=128000", f"--run-dir={tmp_path}/parts", "--sharding.kind=row_wise"], 2
    )
    one, two = (
        [r["train/loss"] for r in records(tmp_path / run / "demo") if "train/loss" in r] for run in ("whole", "parts")
    )
    assert len(one) == 200
    assert two == pytest.approx(one, rel=1e-4)
    for found in (whole, parts):
        assert found["popularity/hr@10"] + 0.07 < found["val/hr@10"] < found["teacher/hr@10"]
        assert found["popularity/ndcg@10"] + 0.07 < found["val/ndcg@10"] < found["teacher/ndcg@10"]
    with pytest.raises(RuntimeError, match=r"dim must be what the checkpoint .* was trained with, 8: got 12"):
        run_recipe("train_mf", [*options, "--dim=12", f"--run-dir={tmp_path}/parts"], 1)


@pytest.mark.parametrize("name", ["train_mf", "train_neumf"])
def test_its_package_answers_with_the_best_items(tmp_path: Path, name: str) -> None:
    options = ["demo", "--eval-every=0", "--rows=64000", "--batch-size=640", f"--run-dir={tmp_path}"]
    metrics, module = run_recipe(name, options, 1), load_recipe("quantize_dlrm")
    found = module.main(
        module.Config(recipe=name, run=str(tmp_path / "demo"), calibration_batches=1, max_auc_loss=0.02)
    )
    for metric in ("hr@10", "ndcg@10", "positives", "samples"):
        assert found[f"before/val/{metric}"] == pytest.approx(metrics[f"val/{metric}"], rel=1e-5)
    assert 0 < found["largest_change"] < 0.5
    predictor = Predictor.load(tmp_path / "demo/package")
    taken = predictor.named(predictor({"user": [3, 70], "movie": [[], [5, 19]]}))["items"]
    assert [len(each) for each in taken] == [10, 10]
    again = predictor.named(predictor({"user": [3], "movie": [taken[0][:4]]}))["items"]
    assert again[0][:6] == taken[0][4:]


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "world_size"), [(0, 1), (1, 2), (2, 2)])
def test_demo_reaches_its_value(tmp_path: Path, seed: int, world_size: int) -> None:
    metrics = run_recipe("train_mf", ["demo", f"--seed={seed}", f"--run-dir={tmp_path}"], world_size)
    assert metrics["val/hr@10"] > 0.975 * metrics["teacher/hr@10"]
