"""Specs of the synthetic data sets. No torch, so that ``--help`` is quick."""

from __future__ import annotations

from collections.abc import Sequence

from dlrm_torchrec.schema import DatasetSpec, DenseFeature, Encoding, History, SparseFeature


def demo_spec(
    one_hot: Sequence[int] = (50, 100, 200, 300, 500, 1_000, 2_000, 20_000),
    multi_hot: Sequence[int] = (200, 1_000),
    *,
    encoding: Encoding = "id",
) -> DatasetSpec:
    """A small click log: 8 dense columns, and features whose tables have ``one_hot`` and ``multi_hot`` rows.

    Ids with the ``encoding`` vocab are in order of frequency.
    """
    return DatasetSpec(
        name="demo",
        label="click",
        dense=tuple(DenseFeature(name=f"dense_{i}") for i in range(8)),
        sparse=(
            *(SparseFeature(name=f"id_{i}", rows=rows, encoding=encoding) for i, rows in enumerate(one_hot)),
            *(
                SparseFeature(name=f"list_{i}", rows=rows, encoding=encoding, multi_hot=True, pooling_factor=4.0)
                for i, rows in enumerate(multi_hot)
            ),
        ),
    )


def interactions_spec(users: int = 2_048, items: int = 1_024) -> DatasetSpec:
    """Columns as in prepared MovieLens, without the facts about movies and users."""
    return DatasetSpec(
        name="interactions",
        label="label",
        dense=(),
        sparse=(SparseFeature(name="user", rows=users), SparseFeature(name="movie", rows=items)),
    )


def interests_spec(items: int = 2_000) -> DatasetSpec:
    """Users who like or skip items, as ``datasets.sequences.synthetic`` makes them; a sample has about 45 events."""
    return DatasetSpec(
        name="interests",
        label="like",
        dense=(),
        sparse=(
            SparseFeature(name="segment", rows=10),
            SparseFeature(name="item", rows=items, multi_hot=True, pooling_factor=45),
            SparseFeature(name="category", rows=32, multi_hot=True, pooling_factor=45),
        ),
        history=History(events=("item", "category"), actions=("skip", "like"), positive=("like",)),
    )
