"""Benchmarks of quality: their rows are what they promise, and each prints a line for every contender."""

from __future__ import annotations

import importlib
import re
from types import ModuleType

import numpy as np
import pytest
import torch

from tests.recipe import ROOT
from tests.scripts import run_python


def benchmark(name: str) -> ModuleType:
    return importlib.import_module(f"benchmarks.{name}")


@pytest.mark.parametrize("features", [1, 2, 7])
def test_both_ways_add_up_all_pairs(features: int) -> None:
    pairs = benchmark("fm_pairs")
    rows = torch.randn(5, features, 4)
    linear, vectors = rows[:, :, 0].double().sum(1), rows[:, :, 1:].double()
    expected = linear + sum((vectors[:, i] * vectors[:, j]).sum(1) for i in range(features) for j in range(i))
    for way in (pairs.Pairs(), pairs.pair_by_pair):
        torch.testing.assert_close(way(rows)[:, 0].double(), expected, rtol=1e-5, atol=1e-5)


def test_ways_that_differ_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = benchmark("fm_pairs")
    linear, square = pairs.compare(9, batch_size=3, dim=4, rounds=2)
    assert len(linear.both) == len(square.both) == 2
    right = pairs.pair_by_pair
    monkeypatch.setattr(pairs, "pair_by_pair", lambda rows: right(rows) * 1.5)
    with pytest.raises(AssertionError, match="not close"):
        pairs.compare(9, batch_size=3, dim=4, rounds=2)


def test_the_exponent_is_that_of_a_power() -> None:
    sizes = [8, 16, 64]
    assert benchmark("fm_pairs").exponent(sizes, [3 * n**1.5 for n in sizes]) == pytest.approx(1.5)


def test_training_never_sees_a_pair_of_the_rows_that_judge() -> None:
    module = benchmark("quality.unseen_pairs")
    world = module.World(seed=3)
    seen, new = world.ids("seen", 50_000), world.ids("new", 5_000)
    for a, b in module.PAIRS:
        trained = set(zip(seen[a], seen[b], strict=True))
        assert len(trained) > 1_000
        assert not trained & set(zip(new[a], new[b], strict=True))
        assert set(new[a]) <= set(seen[a])  # all single values are known
    by_place = [world.probabilities({**new, "place": np.full(5_000, place)}) for place in range(30)]
    assert world.without_places(new) == pytest.approx(sum(by_place) / 30)


@pytest.mark.parametrize("name", ["unseen_pairs", "width_and_depth"])
def test_labels_are_drawn_from_the_probabilities(name: str) -> None:
    module = benchmark(f"quality.{name}")
    world = module.World(seed=4)
    rows = world.rows(20_000) if name == "width_and_depth" else world.rows(world.ids("seen", 20_000))
    labels, expected = rows.columns.labels, rows.probabilities
    for part in np.array_split(np.argsort(expected), 10):
        deviation = np.sqrt((expected[part] * (1 - expected[part])).sum())
        assert abs(labels[part].sum() - expected[part].sum()) < 5 * deviation
    assert 0.6 < rows.best_auc() < 0.98


def test_batches_have_the_columns_of_their_spec() -> None:
    module = benchmark("quality.unseen_pairs")
    world = module.World(seed=5)
    rows, order = world.rows(world.ids("seen", 3_000)), np.random.default_rng(0).permutation(3_000)
    batches = rows.batches(module.VALUES, order)
    assert [batch.num_rows for batch in batches] == [2_048, 952]
    for place, name in enumerate(module.SIZES):
        ids = torch.cat([batch.sparse_features[name].values() for batch in batches])
        assert ids.tolist() == rows.columns.sparse[place].values[order].tolist()
    assert torch.cat([batch.labels for batch in batches]).tolist() == rows.columns.labels[order].tolist()


def test_bags_are_the_latest_likes_and_skips() -> None:
    module = benchmark("quality.family")
    log = module.Log(seed=6, events=12)
    rows = log.rows(2, 12)
    for user in range(0, module.USERS, 59):
        for event in range(2, 12):
            row = user * 10 + event - 2
            before = range(event - 1, max(-1, event - 1 - module.LATEST), -1)
            assert rows.columns.sparse[0].values[row] == user
            for liked, bags in zip((True, False), rows.columns.sparse[-2:], strict=True):
                found = bags.values[bags.offsets[row] : bags.offsets[row + 1]]
                assert found.tolist() == [log.items[user, each] for each in before if log.likes[user, each] == liked]


@pytest.mark.parametrize(
    ("name", "options", "lines"),
    [
        ("unseen_pairs", ["--rows=4096", "--judged=2000"], ["factorisation machine", "best without places"]),
        ("width_and_depth", ["--rows=4096", "--judged=2000"], ["128 128 128 16 +8 1", "128 128 128 16 +128 128 128 1"]),
        ("family", ["--events=30", "--epochs=1", "--contenders=MF", "DCNv2"], ["MF", "DCNv2", "best possible"]),
    ],
)
def test_a_small_run_prints_every_contender(name: str, options: list[str], lines: list[str]) -> None:
    words = [word for option in options for word in option.split("=")]
    done = run_python(["-m", f"benchmarks.quality.{name}", "--seeds", "0", *words], ROOT)
    assert done.returncode == 0, done.stderr
    for line in lines:
        assert re.search(rf"^{line} +\.\d{{4}} ± ", done.stdout, re.MULTILINE), done.stdout
