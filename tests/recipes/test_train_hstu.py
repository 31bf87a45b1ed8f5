"""recipes/train_hstu.py: what it reaches beside a bag of events; ranks, tables and a resume do not change it."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dlrm_torchrec.datasets.sequences.synthetic import Interests
from dlrm_torchrec.datasets.synthetic.specs import interests_spec
from dlrm_torchrec.models.hstu.layer import HSTULayer
from dlrm_torchrec.preparation.crosses import SizedCross
from dlrm_torchrec.preparation.histories import LogColumns, prepare_histories
from dlrm_torchrec.preparation.readers.tables import Form
from dlrm_torchrec.preparation.time_windows import Shares
from dlrm_torchrec.recipe import load_training_recipe
from tests.recipe import records, run_recipe

SMALL = [
    "demo", "--rows=300", "--batch-size=64", "--eval-every=10", "--log.every=1", "--hstu.layers=1",
    "--schedule.warmup-steps=0", "--schedule.decay-steps=0", "--sparse.kind=adagrad", "--dense.kind=sgd",
]  # fmt: skip
TABLES = {
    "hash": ["--tables.kind=hash", "--tables.threshold=100", "--sharding.kind=row_wise"],
    "quotient_remainder": ["--tables.kind=quotient_remainder", "--tables.threshold=100", "--sharding.kind=table_wise"],
}

RECIPES = ["train_hstu", "train_hstu_daily", "train_hstu_next_item"]


def losses(run: Path) -> list[float]:
    return [record["train/loss"] for record in records(run / "demo") if "train/loss" in record]


def test_it_ends_alike_after_a_resume_and_on_two_ranks(tmp_path: Path) -> None:
    def run(name: str, epochs: int, ranks: int) -> dict[str, float]:
        return run_recipe("train_hstu", [*SMALL, f"--epochs={epochs}", f"--run-dir={tmp_path}/{name}"], ranks)

    whole = run("whole", 2, 1)
    run("parts", 1, 1)
    parts, two = run("parts", 2, 1), run("two", 2, 2)
    one = losses(tmp_path / "whole")
    assert len(one) == whole["steps"] > 20
    assert losses(tmp_path / "parts") == one
    assert {**whole, "samples_per_s": 0} == {name: parts[name] for name in whole} | {"samples_per_s": 0}
    assert losses(tmp_path / "two") == pytest.approx(one, rel=1e-4)
    assert {name: two[name] for name in ("val/auc", "val/gauc", "val/ne", "teacher/auc")} == pytest.approx(
        {name: whole[name] for name in ("val/auc", "val/gauc", "val/ne", "teacher/auc")}, rel=1e-3
    )
    with pytest.raises(RuntimeError, match=r"users must be what the checkpoint .* was trained with, 300: got 400"):
        run_recipe("train_hstu", [*SMALL, "--rows=400", f"--run-dir={tmp_path}/parts"], 1)


@pytest.mark.parametrize("tables", TABLES)
def test_compressed_tables_train_alike_on_one_and_two_ranks(tmp_path: Path, tables: str) -> None:
    found = []
    for ranks in (1, 2):
        run_recipe("train_hstu", [*SMALL, *TABLES[tables], f"--run-dir={tmp_path}/{ranks}"], ranks)
        found.append(losses(tmp_path / str(ranks)))
    one, two = found
    assert two == pytest.approx(one, rel=1e-4)
    assert sum(one[-5:]) < sum(one[:5])


def test_a_sequence_tells_more_than_a_bag_of_events(tmp_path: Path) -> None:
    options = ["demo", "--rows=3000", "--epochs=2", "--batch-size=32", "--eval-every=0"]
    sequence, bag = (
        run_recipe("train_hstu", [*options, f"--history={history}", f"--run-dir={tmp_path}/{history}"], 1)
        for history in ("hstu", "pooled")
    )
    assert 0.55 < bag["val/auc"] < sequence["val/auc"] - 0.02 < sequence["teacher/auc"] - 0.02


def test_it_learns_from_a_small_prepared_log(tmp_path: Path) -> None:
    """No option says how: a user likes every other category, which only what the user did tells."""
    log = Interests(interests_spec(), users=150, seed=0).log()
    likes = (log.events["category"] + log.user_of) % 2
    with (tmp_path / "log.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["user", "item", "category", "action", "time"])
        actions = [("skip", "like")[each] for each in likes]
        writer.writerows(zip(log.user_of, log.events["item"], log.events["category"], actions, log.times, strict=True))
    manifest = prepare_histories(
        [str(tmp_path / "log.csv")],
        LogColumns(user="user", item="item", action="action", time="time", events=("category",)),
        str(tmp_path / "log"),
        form=Form(),
        name="likes",
        positive=("like",),
        shares=Shares(val=0.1, test=0.1),
    )
    assert manifest.report["events"] == len(log)
    options = ["demo", "--hstu.layers=1", "--eval-every=0", f"--data={tmp_path}/log", f"--run-dir={tmp_path}/runs"]
    found = run_recipe("train_hstu", options, 2)
    for split in ("val", "test"):
        assert found[f"{split}/samples"] == pytest.approx(0.1 * len(log), rel=0.1)
        assert found[f"{split}/auc"] > 0.9
        assert found[f"{split}/ne"] < 0.8
    assert "teacher/auc" not in found


def test_crosses_of_a_prepared_log_are_learned(tmp_path: Path) -> None:
    """Only the cross of a user with a mark tells what the user will do with a candidate."""
    log = Interests(interests_spec(), users=100, seed=0).log()
    marks = np.random.default_rng(0).integers(0, 2, len(log))
    with (tmp_path / "log.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["user", "item", "action", "time", "is_organic"])
        actions = [("skip", "like")[each] for each in (log.user_of + marks) % 2]
        writer.writerows(zip(log.user_of, log.events["item"], actions, log.times, marks, strict=True))
    crosses = map(SizedCross.parse, ("u x o=user,is_organic:50000", "i x h=item,hour:900"))
    prepare_histories(
        [str(tmp_path / "log.csv")],
        LogColumns(
            user="user", item="item", action="action", time="time", marks=("is_organic",), crosses=tuple(crosses)
        ),
        str(tmp_path / "log"),
        form=Form(),
        name="likes",
        positive=("like",),
        shares=Shares(val=0.1),
    )
    options = ["demo", "--samples.candidates=1", "--samples.history=4", "--epochs=3", "--batch-size=64"]
    options += ["--hstu.layers=1", "--schedule.warmup-steps=0", "--sparse.lr=0.05", f"--run-dir={tmp_path}/runs"]
    found = run_recipe("train_hstu", [*options, f"--data={tmp_path}/log"], 1)
    assert found["val/auc"] > 0.9


@pytest.mark.parametrize("name", RECIPES)
def test_samples_are_refused_before_anything_is_built(tmp_path: Path, name: str) -> None:
    recipe = load_training_recipe(name)
    usual = recipe.Config(rows=20, run_dir=f"{tmp_path}/runs")
    with pytest.raises(ValueError, match="pools and anchors must be actions of the data: got 'buy'; name"):
        recipe.main("demo", replace(usual, samples=replace(usual.samples, pools=("buy",))))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", RECIPES)
def test_models_hold_the_longest_samples(name: str) -> None:
    recipe = load_training_recipe(name)
    usual = recipe.Config()
    longer = replace(usual, samples=replace(usual.samples, history=100))
    context = 0 if name == "train_hstu_next_item" else 1  # the segment
    wanted = 100 + longer.samples.candidates + context
    built = dict(recipe.build(longer, longer.shape, 1, torch.device("cpu"))[0].named_modules())
    layers = [layer for layer in built.values() if isinstance(layer, HSTULayer)]
    assert [layer.config.most_tokens for layer in layers] == [wanted] * usual.hstu.layers
    (places,) = (rows for path, rows in built.items() if path.endswith(".places"))
    assert isinstance(places, torch.nn.Embedding)
    assert places.num_embeddings == wanted
    for preset in recipe.PRESETS.values():  # published sizes stay
        assert preset.hstu.holding(preset.samples.tokens + len(preset.shape.context)) == preset.hstu


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("seed", "ranks"), [(0, 1), (1, 2), (2, 1)])
def test_demo_reaches_its_value(tmp_path: Path, seed: int, ranks: int) -> None:
    metrics = run_recipe("train_hstu", ["demo", f"--seed={seed}", f"--run-dir={tmp_path}"], ranks, timeout_s=800)
    assert (metrics["val/auc"] - 0.5) / (metrics["teacher/auc"] - 0.5) >= 0.95
