"""Whole runs of recipes on 16 ranks of two hosts, as on GPUs: their collectives agree, and get the device's tensors."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from dlrm_torchrec.train.stop import StopRequest
from tests.collectives.ranks import here
from tests.collectives.walked import RANKS, issued, walk_recipe
from tests.prepared import write_prepared
from tests.recipe import ROOT

RECIPES = sorted(path.stem for path in (ROOT / "recipes").glob("train_*.py"))
# FBGEMM has no Adam for tables on a CPU, which stands in for a GPU here.
OPTIONS = {name: ["--sparse.kind", "adagrad"] for name in RECIPES if "hstu" in name}


def without_speed(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if name != "samples_per_s"}


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_ranks_agree_in_every_recipe_at_the_speed_that_it_chooses(tmp_path: Path, recipe: str) -> None:
    metrics, _ = walk_recipe(recipe, tmp_path, *OPTIONS.get(recipe, []), "--speed", "auto")
    assert [without_speed(each) for each in metrics] == [without_speed(metrics[0])] * RANKS


@pytest.mark.parametrize("size", [pytest.param(1, marks=pytest.mark.slow), 8, pytest.param(16, marks=pytest.mark.slow)])
def test_nodes_exchange_vectors_among_themselves_and_averages_with_their_peers(tmp_path: Path, size: int) -> None:
    _, meetings = walk_recipe(
        "train_dlrm_local_embeddings",
        tmp_path,
        "--node-size",
        str(size),
        "--average-every",
        "2",
        "--log.timed",
        "2",
        "3",
    )
    assert {len(each.ranks) for each in issued(meetings, "dist_data.py")} == ({size} if size > 1 else set())
    averages = issued(meetings, "node_local.py:119")
    assert {each.ranks for each in averages} == {tuple(range(place, RANKS, size)) for place in range(size)}


def test_a_run_that_a_signal_on_one_rank_stops_goes_on_with_another_sharding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agreed = StopRequest.agreed

    def agreed_after_a_signal(stop: StopRequest) -> bool:
        if here().rank == 3:
            stop._received = signal.SIGTERM
        return agreed(stop)

    options = ["--sparse.kind", "sgd", "--checkpoint.asynchronous", "--checkpoint.best", "--clip-norm", "1"]
    with monkeypatch.context() as stopping:
        stopping.setattr(StopRequest, "agreed", agreed_after_a_signal)
        stopped, _ = walk_recipe("train_dlrm", tmp_path, *options, "--sharding.kind", "table_row_wise")
    assert [each["steps"] for each in stopped] == [1] * RANKS
    ended, _ = walk_recipe("train_dlrm", tmp_path, *options, "--sharding.kind", "grid_shard")
    assert [each["steps"] for each in ended] == [4] * RANKS


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["train_dlrm", "train_dlrm_local_embeddings"])
def test_files_whose_rows_do_not_divide_among_ranks(tmp_path: Path, recipe: str) -> None:
    groups = {"train": [[50, 41], [23], [7]], "val": [[37], [60]], "test": [[19]]}
    folder = write_prepared(tmp_path / "prepared", groups)
    nodes = ["--node-size", "8"] if recipe == "train_dlrm_local_embeddings" else []
    metrics, _ = walk_recipe(recipe, tmp_path / "runs", "--data", str(folder), "--checkpoint.verify", *nodes)
    assert [each["test/samples"] for each in metrics] == [19.0] * RANKS
