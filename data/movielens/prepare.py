"""Prepare MovieLens 100K, 1M, 20M or 25M for training: will a user like a movie, or watch it at all?

    python data/movielens/prepare.py --input ml-1m --output prepared/ml-1m
    python data/movielens/prepare.py --input ml-25m --output prepared/ml-25m --task implicit --split leave_one_out

``explicit``: the label is 1 for ratings of at least ``--liked``. ``implicit``: the label is 1 for every rating, and 0
for ``--negatives`` movies per rating, which are drawn from the movies that the user has not rated. Users, movies and
genres become vocabularies of the training rows; 100K and 1M add gender, age and occupation of the user.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import tyro

from dlrm_torchrec.preparation.movielens import find_format, read_genres, read_ratings, read_users
from dlrm_torchrec.preparation.prepare import Source, prepare
from dlrm_torchrec.preparation.readers.columns import Columns
from dlrm_torchrec.preparation.readers.raw_parquet import ParquetReader
from dlrm_torchrec.preparation.splits import Whole
from dlrm_torchrec.preparation.user_item_splits import Ratings, by_time, leave_one_out, with_negatives
from dlrm_torchrec.schema import DatasetSpec, DenseFeature, SparseFeature

DAY_S = 86_400


@dataclass(frozen=True, kw_only=True)
class Config:
    input: str  # Folder that MovieLens unpacks to.
    output: str  # Folder to prepare, new or empty.
    task: Literal["explicit", "implicit"] = "explicit"  # Predict whether users like a movie, or whether they watch it.
    liked: float = 4.0  # For explicit: least rating with label 1.
    negatives: int = 4  # For implicit: movies drawn for each training row.
    eval_negatives: int = 99  # For implicit: movies drawn for each row of val and test.
    split: Literal["time", "leave_one_out"] = "time"  # Hold out the latest ratings, or each user's last two.
    val_share: float = 0.1  # For time: share of the ratings for 'val'.
    test_share: float = 0.1  # For time: share of the ratings for 'test'.
    seed: int = 0  # Seed of the negatives.
    overwrite: bool = False  # Replace a folder that is already prepared.


def spec_of(name: str, of_users: list[str]) -> DatasetSpec:
    """The columns to prepare; vocabularies are still to be counted."""
    return DatasetSpec(
        name=name,
        label="label",
        dense=(DenseFeature(name="days", log1p=True),),  # since the first rating in the data set
        sparse=tuple(
            SparseFeature(name=each, rows=0, encoding="vocab", multi_hot=each == "genres")
            for each in ("user", "movie", "genres", *of_users)
        ),
    )


def columns(
    ratings: Ratings,
    labels: npt.NDArray[np.float32],
    *,
    first_s: int,
    genres: Mapping[int, list[str]],
    users: Mapping[int, Mapping[str, str]],
) -> pa.Table:
    """The rows of a split, with the columns that ``spec_of`` names."""
    table: dict[str, Any] = {
        "label": labels,
        "days": (ratings.times - first_s) / DAY_S,
        "user": ratings.users,
        "movie": ratings.items,
        "genres": _of(ratings.items, {movie: [str(genre) for genre in each] for movie, each in genres.items()}),
    }
    for field in next(iter(users.values()), {}):
        table[field] = _of(ratings.users, {user: each[field] for user, each in users.items()})
    return pa.table(table)


def _of(ids: npt.NDArray[np.int64], known: Mapping[int, Any]) -> Any:
    """The known fact for each id; null if there is none."""
    distinct, place = np.unique(ids, return_inverse=True)
    return pa.array([known.get(int(each)) for each in distinct]).take(pa.array(place))


def main(cfg: Config) -> None:
    kind = find_format(cfg.input)
    ratings, genres, users = read_ratings(cfg.input, kind), read_genres(cfg.input, kind), read_users(cfg.input, kind)
    if cfg.split == "leave_one_out":
        parts = leave_one_out(ratings)
    else:
        parts = by_time(ratings, val_share=cfg.val_share, test_share=cfg.test_share)
    parts = {name: part for name, part in parts.items() if len(part)}
    spec = spec_of(f"movielens-{kind}-{cfg.task}", list(next(iter(users.values()), {})))
    with tempfile.TemporaryDirectory() as folder:
        sources = []
        for number, (name, part) in enumerate(parts.items()):
            labels = (part.scores >= cfg.liked).astype(np.float32)
            if cfg.task == "implicit":
                count = cfg.negatives if name == "train" else cfg.eval_negatives
                part, labels = with_negatives(part, ratings, per_positive=count, seed=cfg.seed + number)
            path = f"{folder}/{name}.parquet"
            table = columns(part, labels, first_s=int(ratings.times.min()), genres=genres, users=users)
            pq.write_table(table, path)
            sources.append(Source(path=path, reader=ParquetReader(columns=Columns(spec=spec)), assignment=Whole(name)))
        manifest = prepare(spec, sources, cfg.output, overwrite=cfg.overwrite)
    rows = ", ".join(f"{split.rows:,} {name}" for name, split in manifest.splits.items())
    print(f"{cfg.output}: {rows} rows of {len(ratings):,} ratings")


if __name__ == "__main__":
    try:
        main(tyro.cli(Config, description=__doc__))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
