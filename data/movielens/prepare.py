"""Prepare MovieLens, or any list of users and items, for training: will a user like an item, or take it at all?

    python data/movielens/prepare.py --input ml-1m --output prepared/ml-1m
    python data/movielens/prepare.py --input ml-25m --output prepared/ml-25m --task implicit --split leave_one_out
    python data/movielens/prepare.py --input Gowalla.txt.gz --columns user time latitude longitude item \\
        --output prepared/gowalla --task implicit

``explicit``: the label is 1 for ratings of at least ``--liked``. ``implicit``: the label is 1 for every rating, and 0
for ``--negatives`` items per rating, which are drawn from the items that the user has not rated. Users, items and
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

from dlrm_torchrec.datasets.prepared.manifest import join
from dlrm_torchrec.preparation.interactions import Interactions, read_interactions
from dlrm_torchrec.preparation.movielens import FORMATS, find_format, read_genres, read_users
from dlrm_torchrec.preparation.prepare import Source, prepare
from dlrm_torchrec.preparation.readers.columns import Columns
from dlrm_torchrec.preparation.readers.raw_parquet import ParquetReader
from dlrm_torchrec.preparation.readers.tables import Form
from dlrm_torchrec.preparation.splits import Whole
from dlrm_torchrec.preparation.user_item_splits import Ratings, by_time, leave_one_out, with_negatives
from dlrm_torchrec.schema import DatasetSpec, DenseFeature, SparseFeature

DAY_S = 86_400


@dataclass(frozen=True, kw_only=True)
class Config:
    input: str  # Folder that MovieLens unpacks to; or a table of users and items: a file, a folder or a pattern.
    output: str  # Folder to prepare, new or empty.
    user: str = ""  # Column of the user in a table of your own; empty finds it by a usual name, like the next three.
    item: str = ""  # Column of the item.
    rating: str = ""  # Column of the rating; a table may have none.
    time: str = ""  # Column of the time; a table may have none.
    separator: str = ""  # Between the fields of text of your own, such as :: or \t; empty means that the file tells.
    columns: tuple[str, ...] = ()  # Names of the columns of text of your own that has no header line.
    task: Literal["explicit", "implicit"] = "explicit"  # Predict whether users like an item, or whether they take it.
    liked: float = 4.0  # For explicit: least rating with label 1.
    negatives: int = 4  # For implicit: items drawn for each training row.
    eval_negatives: int = 99  # For implicit: items drawn for each row of val and test.
    split: Literal["time", "leave_one_out"] = "time"  # Hold out the latest ratings, or each user's last two.
    val_share: float = 0.1  # For time: share of the ratings for 'val'.
    test_share: float = 0.1  # For time: share of the ratings for 'test'.
    seed: int = 0  # Seed of the negatives.
    overwrite: bool = False  # Replace a folder that is already prepared.


def spec_of(name: str, columns: list[str], *, timed: bool) -> DatasetSpec:
    """The columns to prepare; vocabularies are still to be counted."""
    return DatasetSpec(
        name=name,
        label="label",
        dense=(DenseFeature(name="days", log1p=True),) if timed else (),  # since the first rating in the data set
        sparse=tuple(
            SparseFeature(name=each, rows=0, encoding="vocab", multi_hot=each == "genres") for each in columns
        ),
    )


def columns(
    ratings: Ratings,
    labels: npt.NDArray[np.float32],
    *,
    of: Interactions,
    item: str,
    genres: Mapping[int, list[str]],
    users: Mapping[int, Mapping[str, str]],
) -> pa.Table:
    """The rows of a split: label, days, user, item, and what is known of both."""
    table: dict[str, Any] = {"label": labels}
    if of.timed:
        table["days"] = (ratings.times - of.ratings.times.min()) / DAY_S
    table |= {"user": of.user_values(ratings.users), item: of.item_values(ratings.items)}
    if genres:
        table["genres"] = _of(ratings.items, {movie: [str(genre) for genre in each] for movie, each in genres.items()})
    for field in next(iter(users.values()), {}):
        table[field] = _of(ratings.users, {user: each[field] for user, each in users.items()})
    return pa.table(table)


def _of(ids: npt.NDArray[np.int64], known: Mapping[int, Any]) -> Any:
    """The known fact for each id; null if there is none."""
    distinct, place = np.unique(ids, return_inverse=True)
    return pa.array([known.get(int(each)) for each in distinct]).take(pa.array(place))


def read(cfg: Config, kind: str) -> Interactions:
    """The ratings; raises ValueError if the task or the split needs more than they tell."""
    path, form = cfg.input, Form(separator=cfg.separator, names=cfg.columns)
    if kind:
        path, form = join(cfg.input, FORMATS[kind].ratings), FORMATS[kind].form
    found = read_interactions(path, form, {part: getattr(cfg, part) for part in ("user", "item", "rating", "time")})
    if cfg.task == "explicit" and not found.rated:
        raise ValueError(f"{path} must have ratings for --task explicit: got none; name --rating, or use implicit")
    if cfg.split == "time" and not found.timed:
        raise ValueError(f"{path} must have times for --split time: got none; name --time, or use leave_one_out")
    return found


def main(cfg: Config) -> None:
    kind = find_format(cfg.input)
    found = read(cfg, kind)
    ratings, genres, users = found.ratings, {}, {}
    if kind:
        genres, users = read_genres(cfg.input, kind), read_users(cfg.input, kind)
    if cfg.split == "leave_one_out":
        parts = leave_one_out(ratings)
    else:
        parts = by_time(ratings, val_share=cfg.val_share, test_share=cfg.test_share)
    parts = {name: part for name, part in parts.items() if len(part)}
    item = "movie" if kind else "item"
    facts = [*(["genres"] if genres else []), *next(iter(users.values()), {})]
    name = f"movielens-{kind}" if kind else "interactions"
    spec = spec_of(f"{name}-{cfg.task}", ["user", item, *facts], timed=found.timed)
    with tempfile.TemporaryDirectory() as folder:
        sources = []
        for number, (name, part) in enumerate(parts.items()):
            labels = (part.scores >= cfg.liked).astype(np.float32)
            if cfg.task == "implicit":
                count = cfg.negatives if name == "train" else cfg.eval_negatives
                part, labels = with_negatives(part, ratings, per_positive=count, seed=cfg.seed + number)
            path = f"{folder}/{name}.parquet"
            table = columns(part, labels, of=found, item=item, genres=genres, users=users)
            pq.write_table(table, path)
            sources.append(Source(path=path, reader=ParquetReader(columns=Columns(spec=spec)), assignment=Whole(name)))
        one_class = {"train"} if cfg.task == "implicit" and not cfg.negatives else set[str]()
        manifest = prepare(spec, sources, cfg.output, overwrite=cfg.overwrite, one_class=one_class)
    rows = ", ".join(f"{split.rows:,} {name}" for name, split in manifest.splits.items())
    print(f"{cfg.output}: {rows} rows of {len(ratings):,} ratings")


if __name__ == "__main__":
    try:
        main(tyro.cli(Config, description=__doc__))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
