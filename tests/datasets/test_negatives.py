"""Negatives drawn while reading: what they are, that every epoch has others, and their position by step and rank."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from dlrm_torchrec.datasets.batch import Batch
from dlrm_torchrec.datasets.negatives import WithNegatives
from dlrm_torchrec.datasets.prepared.manifest import DataFile, Manifest, Split
from dlrm_torchrec.datasets.stream import Ranks
from dlrm_torchrec.schema import DatasetSpec, DenseFeature, SparseFeature

USERS, ITEMS = 12, 9  # ids 2 .. 11 and 2 .. 8
SPEC = DatasetSpec(
    name="met",
    label="label",
    dense=(DenseFeature(name="days"),),
    sparse=(
        SparseFeature(name="user", rows=USERS, encoding="vocab"),
        SparseFeature(name="tags", rows=5, multi_hot=True),
        SparseFeature(name="item", rows=ITEMS, encoding="vocab"),
    ),
)


def write(
    folder: Path, pairs: list[tuple[int, int]], labels: list[float] | None = None, spec: DatasetSpec = SPEC
) -> str:
    users, items = zip(*pairs, strict=True)
    table = pa.table(
        {
            "label": pa.array([1.0] * len(pairs) if labels is None else labels, pa.float32()),
            "days": pa.array([0.5] * len(pairs), pa.float32()),
            "user": pa.array(users, pa.int32()),
            "tags": pa.array([[1, 2]] * len(pairs), pa.list_(pa.int32())),
            "item": pa.array(items, pa.int32()),
        }
    )
    (folder / "train").mkdir(parents=True)
    pq.write_table(table, folder / "train/part-0.parquet", row_group_size=7)
    split = Split(files=(DataFile(path="train/part-0.parquet", rows=len(pairs)),))
    Manifest(spec=spec, splits={"train": split}).save(str(folder))
    return str(folder)


def met() -> list[tuple[int, int]]:
    random = np.random.default_rng(0)
    return [(user, int(item)) for user in range(2, USERS) for item in random.permutation(range(2, ITEMS))[:5]]


def stream(folder: str, batch: int = 32, rank: int = 0, world_size: int = 1, **options: int) -> WithNegatives:
    settings = {"epochs": 40, "seed": 0, "lanes": 1, "count": 3, **options}
    return WithNegatives(folder, "user", "item", ranks=Ranks(batch, rank, world_size), **settings)


def rows(batches: list[Batch]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Users, items and labels of the real rows of batches, in order."""
    users, items = (
        torch.cat([batch.sparse_features[name].values() for batch in batches]).numpy() for name in ("user", "item")
    )
    return users, items, torch.cat([batch.labels[: batch.num_rows] for batch in batches]).numpy()


def test_negatives_are_uniform_over_the_items_that_the_user_lacks(tmp_path: Path) -> None:
    made = stream(write(tmp_path, met()))
    assert made.num_steps == 40 * 7  # 50 interactions, 8 in a batch
    batches = list(made.batches())
    assert made.spec == SPEC
    for batch in batches:
        assert batch.sparse_features.keys() == ["user", "tags", "item"]  # as in the other splits
        assert batch.sparse_features["tags"].values().numel() == 0
        assert batch.dense_features.tolist() == [[0.0]] * len(batch.labels)
    users, items, labels = (column.reshape(-1, 4) for column in rows(batches))
    assert (labels == [1, 0, 0, 0]).all()
    assert (users == users[:, :1]).all()
    interactions = list(zip(users[:, 0].tolist(), items[:, 0].tolist(), strict=True))
    assert sorted(interactions) == sorted(met() * 40)
    drawn = np.zeros((USERS, ITEMS))
    np.add.at(drawn, (users[:, 1:].ravel(), items[:, 1:].ravel()), 1)
    lacked = np.ones((USERS, ITEMS), bool)
    lacked[:2] = lacked[:, :2] = False
    lacked[tuple(np.array(met()).T)] = False
    assert (drawn > 0).tolist() == lacked.tolist()
    np.testing.assert_allclose(drawn[lacked], 5 * 40 * 3 / 2, rtol=0.2)  # each user lacks two


def test_every_epoch_and_seed_has_other_negatives(tmp_path: Path) -> None:
    folder = write(tmp_path, met())
    whole = list(stream(folder, batch=200, epochs=2).batches())  # an epoch is one batch
    other = list(stream(folder, batch=200, epochs=2, seed=1).batches())
    sets = []
    for batch in (*whole, other[0]):
        users, items, labels = rows([batch])
        sets.append(np.sort((users * ITEMS + items)[labels == 0]).tolist())
    assert sets[0] != sets[1]
    assert sets[0] != sets[2]


@pytest.mark.parametrize("start", [0, 5])
def test_batches_are_the_same_rows_on_two_ranks_and_from_any_step(tmp_path: Path, start: int) -> None:
    folder = write(tmp_path, met())
    expected = list(stream(folder, epochs=2).batches())[start:]
    parts = [list(stream(folder, rank=rank, world_size=2, epochs=2).batches(start)) for rank in (0, 1)]
    for whole, *pieces in zip(expected, *parts, strict=True):
        assert [piece.global_rows for piece in pieces] == [whole.num_rows] * 2
        assert len(pieces[0].labels) == len(pieces[1].labels)
        for found, wanted in zip(rows(pieces), rows([whole]), strict=True):
            np.testing.assert_array_equal(found, wanted)


def test_what_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "met", met())
    message = "must be a multiple of 2 ranks x 4 rows of an interaction and its negatives: got 36; choose a multiple"
    with pytest.raises(ValueError, match=re.escape(message)):
        stream(folder, batch=36, world_size=2)
    message = "user and item must be one-hot features of the data: got 'user' and 'tags'; name two of ['item', 'user']"
    with pytest.raises(ValueError, match=re.escape(message)):
        WithNegatives(folder, "user", "tags", 3, ranks=Ranks(32, 0, 1), epochs=1, seed=0, lanes=1)
    managed = replace(SPEC, sparse=(*SPEC.sparse[:2], SparseFeature(name="item", rows=ITEMS, encoding="managed")))
    folder = write(tmp_path / "managed", met(), spec=managed)
    with pytest.raises(ValueError, match="items must be numbered for negatives to be drawn: got feature 'item' of enc"):
        stream(folder)
    folder = write(tmp_path / "labels", met()[:2], [1.0, 0.0])
    with pytest.raises(ValueError, match=r"must all have label 1 .* label 0 in .*; prepare it with --negatives 0"):
        stream(folder)
    folder = write(tmp_path / "all", [(3, item) for item in range(2, ITEMS)])
    with pytest.raises(
        ValueError, match="items to draw negatives from: got user 3 with all items; leave this user out"
    ):
        stream(folder)
