"""recipes/train_hstu_next_item.py: what it reaches; ranks, tables and a resume do not change it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dlrm_torchrec.datasets.sequences.browsing import Browsing
from dlrm_torchrec.datasets.synthetic.specs import browsing_spec
from tests.distributed import run_ranks
from tests.recipe import ROOT, load_recipe, records, run_recipe
from tests.scripts import run_python

SMALL = [
    "demo", "--rows=500", "--epochs=2", "--batch-size=50", "--draws=100", "--eval-every=7", "--log.every=1",
    "--hstu.layers=1", "--hstu.dropout=0", "--hstu.input-dropout=0", "--schedule.warmup-steps=0",
    "--schedule.decay-steps=0", "--sparse.kind=adagrad", "--dense.kind=sgd",
]  # fmt: skip


def evaluate(run: Path, split: str) -> dict[str, float]:
    recipe = load_recipe("evaluate")
    metrics: dict[str, float] = recipe.main(
        recipe.Config(recipe="train_hstu_next_item", run=str(run), split=split, batch_size=64)
    )
    return metrics


def check_evaluation(run: Path, metrics: dict[str, float], split: str, *, ranks: int) -> None:
    """The metrics of a split are those that the run printed."""
    found = run_ranks(ranks, evaluate, run, split, join=False)[0]
    names = [f"{split}/{name}" for name in ("hr@10", "ndcg@10", "auc", "positives", "samples")]
    assert {name: found[name] for name in names} == pytest.approx({name: metrics[name] for name in names}, rel=1e-5)
    assert found["steps"] == metrics["steps"]


def losses(run: Path) -> list[float]:
    return [record["train/loss"] for record in records(run / "demo") if "train/loss" in record]


@pytest.mark.parametrize("options", [[], ["--tables.kind=quotient_remainder", "--tables.threshold=100"]])
def test_it_ends_alike_after_a_resume_and_on_two_ranks(tmp_path: Path, options: list[str]) -> None:
    def run(name: str, epochs: int, ranks: int, *more: str) -> dict[str, float]:
        words = [*SMALL, *options, *more, f"--epochs={epochs}", f"--run-dir={tmp_path}/{name}"]
        return run_recipe("train_hstu_next_item", words, ranks)

    whole = run("whole", 2, 1)
    run("parts", 1, 1)
    parts, two = run("parts", 2, 1), run("two", 2, 2, "--sharding.kind=row_wise")
    one = losses(tmp_path / "whole")
    assert len(one) == whole["steps"] == 20
    assert losses(tmp_path / "parts") == one
    assert {**whole, "samples_per_s": 0} == {name: parts[name] for name in whole} | {"samples_per_s": 0}
    assert losses(tmp_path / "two") == pytest.approx(one, rel=1e-4)
    assert two["val/auc"] == pytest.approx(whole["val/auc"], abs=1e-3)
    assert one[-1] < one[0]
    check_evaluation(tmp_path / "two/demo", two, "val", ranks=1)


def test_it_ranks_better_than_popularity_and_takes_movielens(tmp_path: Path) -> None:
    few = ["demo", "--batch-size=32", "--eval-every=0", "--sparse.lr=0.03", "--dense.lr=0.01"]
    found = run_recipe("train_hstu_next_item", [*few, "--rows=1000", "--epochs=8", f"--run-dir={tmp_path}/runs"], 1)
    for metric in ("hr@10", "ndcg@10"):
        assert 2 * found[f"popularity/{metric}"] < found[f"val/{metric}"] < found[f"teacher/{metric}"]

    log = Browsing(browsing_spec(), users=300, seed=0).log()
    (tmp_path / "ml-1m").mkdir()
    (tmp_path / "ml-1m/ratings.dat").write_text(
        "".join(
            f"{user + 1}::{item + 1}::{1 + item % 5}::{time}\n"
            for user, item, time in zip(log.user_of, log.events["item"], log.times, strict=True)
        )
    )
    prepare = [str(ROOT / "data/events/prepare.py"), "--input", "ml-1m", "--output", "histories"]
    done = run_python(prepare, tmp_path)
    assert done.returncode == 0, done.stderr
    options = [*few, "--epochs=2", f"--data={tmp_path}/histories", f"--run-dir={tmp_path}/movies"]
    movies = run_recipe("train_hstu_next_item", options, 2)
    assert movies["val/positives"] == movies["test/positives"] == 300
    assert movies["test/auc"] > 0.5
    assert "teacher/hr@10" not in movies
    for split, ranks in (("val", 2), ("test", 1)):
        check_evaluation(tmp_path / "movies/demo", movies, split, ranks=ranks)


def test_ml_1m_is_that_of_the_paper() -> None:
    recipe = load_recipe("train_hstu_next_item")
    cfg = recipe.PRESETS["ml-1m"]
    task, tables = recipe.build(cfg, cfg.shape, 1, torch.device("cpu"))
    (table,) = tables.embedding_configs()
    assert (table.num_embeddings, table.embedding_dim, table.feature_names) == (3_706, 52, ["item", "item drawn"])
    layers = task.model.score.next_item.layers
    assert (len(layers), layers[0].widths, task.model.score.next_item.temperature) == (8, (50, 50, 50, 50), 0.05)
    assert (cfg.rows, cfg.epochs, cfg.batch_size, cfg.samples.history, cfg.samples.held_out) == (
        *(6_040, 101, 128, 200),
        "last",
    )
    words = " ".join((recipe.__doc__ or "").split())
    assert "HR@10 .3294" in words
    assert "NDCG@10 .1893" in words


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("seed", "ranks"), [(0, 1), (1, 2)])
def test_demo_reaches_its_value(tmp_path: Path, seed: int, ranks: int) -> None:
    options = ["demo", f"--seed={seed}", f"--run-dir={tmp_path}"]
    metrics = run_recipe("train_hstu_next_item", options, ranks, timeout_s=800)
    assert metrics["val/hr@10"] > 0.88 * metrics["teacher/hr@10"]
