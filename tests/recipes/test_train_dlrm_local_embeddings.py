"""``recipes/train_dlrm_local_embeddings.py``: nodes learn apart, average as told, resume exactly."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.recipe import records, run_recipe
from tests.train.test_same_losses import TOLERANCE

RECIPE = "train_dlrm_local_embeddings"
BATCH = 128


def train(recipe: str, folder: Path, steps: int, world_size: int, *options: str) -> dict[str, float]:
    """The demo's metrics after ``steps`` steps; a longer run continues a shorter one of the same folder."""
    arguments = [
        "demo", f"--rows={steps * BATCH}", f"--batch-size={BATCH}", f"--run-dir={folder}", "--log.every=1",
        "--eval-every=0", "--schedule.decay-steps=0", "--schedule.warmup-steps=0", *options,
    ]  # fmt: skip
    metrics = run_recipe(recipe, arguments, world_size)
    return {name: value for name, value in metrics.items() if name not in ("samples_per_s", "step_bytes")}


def losses(folder: Path) -> list[float]:
    return [record["train/loss"] for record in records(folder / "demo") if "train/loss" in record]


SGD = ["--sparse.kind=sgd", "--sparse.lr=100"]


def test_tables_averaged_at_every_step_are_data_parallel_ones_with_sgd(tmp_path: Path) -> None:
    """Also where the last batch is shared unequally."""
    options = [*SGD, "--rows=2501"]
    expected = train("train_dlrm", tmp_path / "parallel", 20, 1, *options, "--sharding.kind=data_parallel")
    found = train(RECIPE, tmp_path / "averaged", 20, 2, *options, "--average-every=1")
    assert losses(tmp_path / "averaged") == pytest.approx(losses(tmp_path / "parallel"), rel=TOLERANCE)
    for name in ("auc", "logloss"):
        values = [found[f"val/{of}{name}"] for of in ("", "node0/", "node1/")]
        assert values == pytest.approx(3 * [expected[f"val/{name}"]], rel=1e-5)
    assert found["val/distance"] == 0


def test_a_resumed_run_equals_an_undisturbed_one(tmp_path: Path) -> None:
    whole = train(RECIPE, tmp_path / "whole", 12, 2, "--average-every=5")
    train(RECIPE, tmp_path / "parts", 7, 2, "--average-every=5")
    assert train(RECIPE, tmp_path / "parts", 12, 2, "--average-every=5") == whole
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    assert whole["val/distance"] > 0
    assert whole["val/node0/auc"] != whole["val/node1/auc"]


@pytest.mark.slow
def test_nodes_of_two_ranks_resume(tmp_path: Path) -> None:
    """Not bit for bit: over four ranks, the order of DDP's sums differs in the first step after a start."""
    options = ["--node-size=2", "--average-every=5", "--sharding.tables", "t_id_0", "table_wise", "t_id_7", "row_wise"]
    whole = train(RECIPE, tmp_path / "whole", 12, 4, *options)
    train(RECIPE, tmp_path / "parts", 7, 4, *options)
    assert train(RECIPE, tmp_path / "parts", 12, 4, *options) == pytest.approx(whole, rel=1e-5)
    assert whole["val/node0/auc"] != whole["val/node1/auc"]
    with pytest.raises(
        RuntimeError,
        match=r"must not be one of data_parallel, table_row_wise, grid_shard, .*: got 'data_parallel'; choose another",
    ):
        train(RECIPE, tmp_path, 12, 4, "--node-size=2", "--sharding.kind=data_parallel")
    with pytest.raises(RuntimeError, match=r"nodes must be what the checkpoint .* was trained with, 2: got 1; restore"):
        train(RECIPE, tmp_path / "whole", 24, 2, "--node-size=2")


@pytest.mark.slow
def test_one_node_of_all_ranks_is_train_dlrm(tmp_path: Path) -> None:
    expected = train("train_dlrm", tmp_path / "sharded", 10, 2)
    found = train(RECIPE, tmp_path / "node", 10, 2, "--node-size=2")
    assert losses(tmp_path / "node") == losses(tmp_path / "sharded")
    assert [found["val/auc"], found["val/node0/auc"]] == pytest.approx(2 * [expected["val/auc"]], rel=1e-9)
    assert found["val/distance"] == 0


@pytest.mark.slow
def test_the_demo_reaches_its_value_on_two_nodes(tmp_path: Path) -> None:
    """Seeds 0 to 2: single nodes .9740 to .9786 of the way to the teacher, their ensemble .9813 to .9832."""
    found = run_recipe(RECIPE, ["demo", f"--run-dir={tmp_path}"], 2)
    together, *singles = (learned(found, name) for name in ("val/auc", "val/node0/auc", "val/node1/auc"))
    assert together >= 0.979
    assert all(0.971 <= single <= together - 0.002 for single in singles)
    distances = [r["val/relative_distance"] for r in records(tmp_path / "demo") if "val/relative_distance" in r]
    assert all(0.9 < distance < 1.2 for distance in distances)  # it does not go away
    assert found["step_bytes"] < 34_000  # the MLPs' gradients


@pytest.mark.slow
def test_the_demo_reaches_its_value_on_one_rank(tmp_path: Path) -> None:
    """As train_dlrm: .9842 with seed 0."""
    found = run_recipe(RECIPE, ["demo", f"--run-dir={tmp_path}"], 1)
    assert learned(found, "val/auc") >= 0.981
    assert found["val/node0/auc"] == pytest.approx(found["val/auc"], rel=1e-9)
    assert found["step_bytes"] == 0


def learned(metrics: dict[str, float], name: str) -> float:
    """The share of the way from AUC 0.5 to the teacher's."""
    return (metrics[name] - 0.5) / (metrics["teacher/auc"] - 0.5)
