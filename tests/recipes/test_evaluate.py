"""recipes/evaluate.py: the run's own numbers, on any ranks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dlrm_torchrec.preparation.prepare import Source, prepare
from dlrm_torchrec.preparation.readers.columns import Columns
from dlrm_torchrec.preparation.readers.tables import Form, table_reader
from dlrm_torchrec.preparation.splits import ByHash, Whole
from dlrm_torchrec.schema import DatasetSpec, SparseFeature
from tests.distributed import run_ranks
from tests.recipe import load_recipe, run_recipe

SMALL = ["demo", "--rows=40960", "--batch-size=1024", "--eval-every=0", "--checkpoint.every=20"]


def evaluate(run: Path, options: dict[str, Any]) -> dict[str, float]:
    recipe = load_recipe("evaluate")
    return recipe.main(recipe.Config(**{"recipe": "train_dlrm", "run": str(run), **options}))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    """A run of two ranks, tables by rows, and its final metrics."""
    folder = tmp_path_factory.mktemp("run")
    return folder / "demo", run_recipe("train_dlrm", [*SMALL, "--sharding.kind=row_wise", f"--run-dir={folder}"], 2)


@pytest.mark.parametrize("world_size", [1, 2])
def test_metrics_are_those_of_the_run(trained: tuple[Path, dict[str, float]], world_size: int) -> None:
    run, metrics = trained
    found = run_ranks(world_size, evaluate, run, {}, join=False)[0]
    for name in ("val/auc", "val/ne", "val/logloss", "val/samples"):
        assert found[name] == pytest.approx(metrics[name], rel=1e-5)
    assert 0 < found["val/calibration_error"] < 0.1
    written = json.loads((run / "evaluation.json").read_text())
    assert sum(each["samples"] for each in written["calibration"]) == metrics["val/samples"]


def test_rows_for_training_count_once_and_need_no_others(tmp_path: Path) -> None:
    lines = [f"{i % 3 // 2},{'abcd'[i % 4]}" for i in range(3000)]
    (tmp_path / "rows.csv").write_text("\n".join(["y,city", *lines]))
    spec = DatasetSpec(name="rows", label="y", dense=(), sparse=(SparseFeature(name="city", rows=0, encoding="vocab"),))
    reader = table_reader(str(tmp_path / "rows.csv"), Columns(spec=spec), Form())
    for name, place in (("both", ByHash("train", (("val", 0.1),))), ("train", Whole("train"))):
        source = Source(path=str(tmp_path / "rows.csv"), reader=reader, assignment=place)
        earlier = str(tmp_path / "both") if name == "train" else ""
        prepare(spec, [source], str(tmp_path / name), earlier=earlier)
    data = f"--data={tmp_path / 'both'}"
    run_recipe("train_dlrm", ["demo", data, "--epochs=2", f"--run-dir={tmp_path / 'runs'}"], 1)
    options = {"split": "train", "data": str(tmp_path / "train")}
    assert run_ranks(1, evaluate, tmp_path / "runs" / "demo", options, join=False)[0]["train/samples"] == 3000
    with pytest.raises(RuntimeError, match=r"split must be one of .*: got 'val'; name one of \['train'\]"):
        run_ranks(1, evaluate, tmp_path / "runs" / "demo", options | {"split": "val"}, join=False)


def test_an_earlier_step_its_plot_and_what_features_are_worth(
    trained: tuple[Path, dict[str, float]], tmp_path: Path
) -> None:
    run, metrics = trained
    plot = tmp_path / "calibration.png"
    options = {"step": 20, "ablation": True, "plot": str(plot), "batch_size": 65_536, "gauc": "id_0"}
    found = run_ranks(1, evaluate, run, options, join=False)[0]
    assert found["steps"] == 20
    assert found["val/auc"] < metrics["val/auc"]
    assert found["val/gauc"] == pytest.approx(found["val/auc"], abs=0.05)  # 50 ids, each with many rows
    assert found["val/gauc_share"] > 0.99
    assert plot.read_bytes().startswith(b"\x89PNG")
    lost = json.loads((run / "evaluation.json").read_text())["ablation"]
    assert len(lost) == 18
    assert list(lost) == sorted(lost, key=lambda name: -lost[name]["auc"])
    assert max(each["auc"] for each in lost.values()) > 0.005


def test_windows_are_judged_as_when_they_came(tmp_path: Path) -> None:
    small = ["demo", "--rows=3000", "--batch-size=300", "--windows.days=3", "--checkpoint.keep=3"]
    metrics = run_recipe("train_dlrm_daily", [*small, f"--run-dir={tmp_path}"], 1)
    for day in (1, 2):
        options = {"recipe": "train_dlrm_daily", "step": 10 * day, "split": f"day-{day:04d}"}
        found = run_ranks(1, evaluate, tmp_path / "demo", options, join=False)[0]
        for name in ("auc", "ne"):
            expected = metrics[f"windows/day-{day:04d}/val/{name}"]
            assert found[f"day-{day:04d}/{name}"] == pytest.approx(expected, rel=1e-5)
    newest = run_ranks(1, evaluate, tmp_path / "demo", {"recipe": "train_dlrm_daily"}, join=False)[0]
    assert newest["val/auc"] > metrics["val/auc"] + 0.01  # the model has seen these rows now
    with pytest.raises(
        RuntimeError, match=r"split must be one of synthetic: got 'day-0003'; name one of \['day-0000',"
    ):
        run_ranks(1, evaluate, tmp_path / "demo", {"recipe": "train_dlrm_daily", "split": "day-0003"}, join=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step": 7}, r"must hold a whole checkpoint of step 7: got those of steps \[20, 40\]; name another run or"),
        ({"gauc": "dense_0"}, r"gauc must be one of \[.*\]: got 'dense_0'; name one of them"),
        ({"gauc": "user"}, r"gauc must be one of \[.*\]: got 'user'; name one of them"),
        ({"split": "test"}, r"split must be one of synthetic: got 'test'; name one of \['train', 'val'\]"),
    ],
)
def test_what_is_not_there_is_said(
    trained: tuple[Path, dict[str, float]], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(RuntimeError, match=message):
        run_ranks(1, evaluate, trained[0], options, join=False)


def test_a_recipe_that_ranks_items_is_judged_by_ranks(tmp_path: Path) -> None:
    metrics = run_recipe("train_mf", ["demo", "--rows=25600", "--eval-every=0", f"--run-dir={tmp_path}"], 1)
    for world_size in (1, 2):
        found = run_ranks(world_size, evaluate, tmp_path / "demo", {"recipe": "train_mf"}, join=False)[0]
        for name in ("hr@10", "ndcg@10", "auc", "positives", "samples"):
            assert found[f"val/{name}"] == pytest.approx(metrics[f"val/{name}"], rel=1e-5), name
    with pytest.raises(ValueError, match="plot, gauc and ablation must be for rows with labels: got 'train_mf'; leave"):
        evaluate(tmp_path / "demo", {"recipe": "train_mf", "ablation": True})


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"run must be the folder of a run, with config.json: got "):
        evaluate(tmp_path, {})
