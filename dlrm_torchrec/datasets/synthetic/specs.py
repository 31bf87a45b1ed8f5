"""Specs of the synthetic data sets. No torch, so that ``--help`` is quick."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dlrm_torchrec.schema import DatasetSpec, DenseFeature, Encoding, History, SparseFeature


@dataclass(frozen=True, kw_only=True)
class Drift:
    """How synthetic days differ from each other; see ``dlrm_torchrec.datasets.synthetic.drift``."""

    replaced: float = 0.05
    """Share of the living ids that a synthetic day replaces by new ones; 0 means none."""
    speed: float = 0.05
    """Mean angle by which the effects of ids turn per synthetic day, in radians; 0 means that they stay."""
    living: float = 0.25
    """Ids of a feature that live on a synthetic day, for each row of its table."""

    def __post_init__(self) -> None:
        if not 0 <= self.replaced <= 1 or self.speed < 0:
            raise ValueError(
                f"replaced must be a share of ids, and speed at least 0: got {self.replaced} and {self.speed}; try .05"
            )
        if self.living <= 0:
            raise ValueError(f"living ids per row must be more than 0: got {self.living}; try .25")


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


def drift_spec(
    rows: Sequence[int] = (2_000, 4_000, 8_000, 20_000, 40_000), *, encoding: Encoding = "id"
) -> DatasetSpec:
    """A click log whose ids come and go: 8 dense columns, and features whose tables have ``rows`` rows."""
    return DatasetSpec(
        name="drift",
        label="click",
        dense=tuple(DenseFeature(name=f"dense_{i}") for i in range(8)),
        sparse=tuple(SparseFeature(name=f"id_{i}", rows=count, encoding=encoding) for i, count in enumerate(rows)),
    )


def interactions_spec(users: int = 2_048, items: int = 1_024) -> DatasetSpec:
    """Columns as in prepared MovieLens, without the facts about movies and users."""
    return DatasetSpec(
        name="interactions",
        label="label",
        dense=(),
        sparse=(SparseFeature(name="user", rows=users), SparseFeature(name="movie", rows=items)),
    )


def interests_spec(items: int = 500) -> DatasetSpec:
    """Users who like or skip items, as ``datasets.sequences.synthetic`` makes them; a sample has about 26 events."""
    return DatasetSpec(
        name="interests",
        label="like",
        dense=(),
        sparse=(
            SparseFeature(name="segment", rows=10),
            SparseFeature(name="item", rows=items, multi_hot=True, pooling_factor=26),
            SparseFeature(name="category", rows=8, multi_hot=True, pooling_factor=26),
        ),
        history=History(events=("item", "category"), actions=("skip", "like"), positive=("like",)),
    )


def browsing_spec(items: int = 510) -> DatasetSpec:
    """Users who take items, as ``datasets.sequences.browsing`` makes them; MovieLens-1M has 3,706 items."""
    return DatasetSpec(
        name="browsing",
        label="taken",
        dense=(),
        sparse=(SparseFeature(name="item", rows=items, multi_hot=True, pooling_factor=100),),
        history=History(events=("item",), actions=("taken",), positive=()),
    )
