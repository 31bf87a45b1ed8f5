"""Synthetic interactions: their distribution, their negatives, their position by step and rank."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dlrm_torchrec.datasets.open import open_interactions
from dlrm_torchrec.datasets.stream import Ranks
from dlrm_torchrec.datasets.synthetic.interactions import InteractionStream
from dlrm_torchrec.datasets.synthetic.specs import interactions_spec
from dlrm_torchrec.train.metrics.leave_one_out import held_out, leave_one_out_metrics

SPEC = interactions_spec(users=60, items=64)


def train(num_rows: int, batch_size: int = 50, rank: int = 0, world_size: int = 1, seed: int = 0) -> InteractionStream:
    return InteractionStream(SPEC, num_rows=num_rows, ranks=Ranks(batch_size, rank, world_size), seed=seed)


def test_rows_are_what_is_said_of_them() -> None:
    stream = train(500_000)
    users, items, labels = (column.reshape(-1, 5) for column in stream.rows(0, 500_000))
    assert (labels == [1, 0, 0, 0, 0]).all()
    assert (users == users[:, :1]).all()
    assert not (items[:, 1:] == items[:, :1]).any()
    assert users.min() == 0
    assert users.max() == 59
    own = users[:, 0] % 16 == items[:, 0] % 16
    assert own.mean() == pytest.approx(0.8 + 0.2 / 16, abs=0.005)
    drawn = np.bincount(items[:, 1:].ravel(), minlength=64) / 400_000
    weights = np.bincount(items[:, 0], minlength=64) / 100_000
    np.testing.assert_allclose(drawn, (1 - weights) / 63, atol=0.002)  # uniform over all but the positive


def test_the_best_scores_are_the_likelihood_of_the_item() -> None:
    stream = InteractionStream(SPEC, split="val", ranks=Ranks(50, 0, 1))
    users, items, _ = stream.rows(0, stream.num_rows)
    _, _, scores = stream.rankings()
    many_users, many_items, labels = train(1_000_000).rows(0, 1_000_000)
    counts = np.zeros((60, 64))
    np.add.at(counts, (many_users[labels == 1], many_items[labels == 1]), 1)
    share = counts / counts.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(scores["teacher"].numpy(), share[users, items], atol=0.03)
    popularity = counts.sum(axis=0) / counts.sum()
    np.testing.assert_allclose(scores["popularity"].numpy(), popularity[items], atol=0.002)


def test_the_best_ranking_is_above_popularity_which_is_above_chance() -> None:
    stream = InteractionStream(interactions_spec(), split="val", ranks=Ranks(50, 0, 1))
    users, labels, scores = stream.rankings()
    found = {name: leave_one_out_metrics(held_out(users, each, labels))["hr@10"] for name, each in scores.items()}
    assert found["teacher"] > found["popularity"] + 0.2
    assert found["popularity"] > 0.2


@pytest.mark.parametrize("world_size", [1, 2, 5])
def test_batches_are_the_same_rows_for_any_number_of_ranks_and_from_any_step(world_size: int) -> None:
    expected = train(173).rows(0, 173)
    for start in (0, 2, 4):
        parts = [list(train(173, 50, rank, world_size).batches(start)) for rank in range(world_size)]
        for step, batches in zip(range(start, 4), zip(*parts, strict=True), strict=True):
            wanted = slice(50 * step, min(50 * (step + 1), 173))
            assert len({len(batch.labels) for batch in batches}) == 1
            assert [batch.global_rows for batch in batches] == [wanted.stop - wanted.start] * world_size
            columns = (
                torch.cat([batch.sparse_features["user"].values() for batch in batches]),
                torch.cat([batch.sparse_features["movie"].values() for batch in batches]),
                torch.cat([batch.labels[: batch.num_rows] for batch in batches]),
            )
            for number, column in enumerate(columns):
                np.testing.assert_array_equal(column.numpy(), expected[number][wanted])


def test_seeds_and_splits_differ_and_each_user_is_held_out_once() -> None:
    streams = open_interactions(
        "synthetic", SPEC, Ranks(50, 0, 1), columns=("user", "movie"), negatives=4, rows=100, epochs=3, seed=0, lanes=1
    )
    assert {name: stream.num_steps for name, stream in streams.items()} == {"train": 6, "val": 1}
    users, _, labels = InteractionStream(SPEC, split="val", ranks=Ranks(50, 0, 1)).rows(0, 6000)
    assert users[labels == 1].tolist() == list(range(60))
    first, other = (train(300, seed=seed).rows(0, 300)[1] for seed in (0, 1))
    assert (first != other).any()
    assert (first[:100] != first[100:200]).any()  # the next epoch


def test_items_that_do_not_fill_the_groups_are_refused() -> None:
    with pytest.raises(ValueError, match="number of items must be a multiple of 16 groups: got 65; round it"):
        InteractionStream(interactions_spec(items=65), num_rows=1, ranks=Ranks(1, 0, 1))
