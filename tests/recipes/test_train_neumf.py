"""recipes/train_neumf.py: on MovieLens's format from the raw files to HR@10, and on its demo."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.recipe import ROOT, run_recipe

USERS, MOVIES, GROUPS = 100, 200, 10


def write_movielens(folder: Path) -> None:
    """MovieLens 20M's files: each user has rated 17 of the 20 movies of one group."""
    folder.mkdir()
    random = np.random.default_rng(0)
    lines = [
        f"{user + 1},{GROUPS * int(movie) + user % GROUPS + 1},{random.integers(1, 11) / 2},{random.integers(10**9)}"
        for user in range(USERS)
        for movie in random.permutation(MOVIES // GROUPS)[:17]
    ]
    (folder / "ratings.csv").write_text("\n".join(["userId,movieId,rating,timestamp", *lines]) + "\n")
    movies = [f'{movie},"Film, The {movie} (1995)",Drama' for movie in range(1, MOVIES + 1)]
    (folder / "movies.csv").write_text("\n".join(["movieId,title,genres", *movies]) + "\n")


def prepare(folder: Path, output: Path, negatives: int) -> None:
    """What data/movielens/prepare.py makes of ``folder``."""
    spec = importlib.util.spec_from_file_location("prepare_movielens", ROOT / "data/movielens/prepare.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    settings = {"task": "implicit", "split": "leave_one_out", "negatives": negatives}
    module.main(module.Config(input=str(folder), output=str(output), **settings))


@pytest.mark.parametrize("negatives", [4, pytest.param(0, marks=pytest.mark.slow)])  # 0: drawn by prepare.py
def test_from_the_files_of_movielens_to_a_ranking(tmp_path: Path, negatives: int) -> None:
    write_movielens(tmp_path / "ml-20m")
    prepare(tmp_path / "ml-20m", tmp_path / "data", 4 - negatives)
    options = ["ml-100k", f"--data={tmp_path}/data", f"--negatives={negatives}", "--batch-size=500", "--epochs=10"]
    metrics = run_recipe("train_neumf", [*options, "--eval-every=0", f"--run-dir={tmp_path}/run"], 2)
    assert metrics["val/positives"] == metrics["test/positives"] == USERS
    assert metrics["val/samples"] == 100 * USERS
    for split in ("val", "test"):  # of 99 negatives about one is of the user's group; at random HR@10 is 0.1
        assert metrics[f"{split}/hr@10"] > 0.95
        assert 0.65 < metrics[f"{split}/ndcg@10"] < metrics[f"{split}/hr@10"]
    assert "teacher/hr@10" not in metrics


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "world_size", "speed"), [(0, 1, "exact"), (1, 2, "sorted"), (2, 2, "bf16")])
def test_demo_reaches_its_value(tmp_path: Path, seed: int, world_size: int, speed: str) -> None:
    options = ["demo", f"--seed={seed}", f"--speed={speed}", f"--run-dir={tmp_path}"]
    metrics = run_recipe("train_neumf", options, world_size)
    assert metrics["val/hr@10"] > 0.97 * metrics["teacher/hr@10"]
