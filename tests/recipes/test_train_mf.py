"""recipes/train_mf.py: what it reaches, and that ranks, sharding and resuming do not change it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.recipe import records, run_recipe


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


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "world_size"), [(0, 1), (1, 2), (2, 2)])
def test_demo_reaches_its_value(tmp_path: Path, seed: int, world_size: int) -> None:
    metrics = run_recipe("train_mf", ["demo", f"--seed={seed}", f"--run-dir={tmp_path}"], world_size)
    assert metrics["val/hr@10"] > 0.975 * metrics["teacher/hr@10"]
