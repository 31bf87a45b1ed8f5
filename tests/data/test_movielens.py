"""data/movielens/prepare.py on small folders in the formats of 100K, 1M and 20M."""

from __future__ import annotations

import gzip
import re
import subprocess
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dlrm_torchrec.datasets.prepared.manifest import Manifest
from dlrm_torchrec.preparation.interactions import read_interactions
from dlrm_torchrec.preparation.movielens import FORMATS, GENRES_OF_100K, find_format, read_genres, read_users
from dlrm_torchrec.preparation.user_item_splits import Ratings, by_time, leave_one_out, with_negatives
from tests.recipe import ROOT, run_recipe
from tests.scripts import run_python

USERS, MOVIES = 40, 60


def ratings(seed: int = 0) -> Ratings:
    """About 20 ratings of each user, of distinct movies."""
    random = np.random.default_rng(seed)
    pairs = [(user, movie) for user in range(USERS) for movie in random.permutation(MOVIES)[: random.integers(3, 40)]]
    users, movies = (np.array(column, dtype=np.int64) + 1 for column in zip(*pairs, strict=True))
    order = random.permutation(len(users))
    return Ratings(
        users=users[order],
        items=movies[order],
        scores=random.integers(1, 6, len(users)).astype(np.float32),
        times=random.integers(8 * 10**8, 9 * 10**8, len(users)),
    )


def genres(movie: int) -> list[str]:
    return [GENRES_OF_100K[1 + movie % 5], GENRES_OF_100K[7]] if movie % 3 else []


def write(folder: Path, kind: str, found: Ratings) -> Path:
    """A folder in the format of a data set."""
    folder.mkdir()
    rows = list(zip(found.users, found.items, found.scores, found.times, strict=True))
    if kind == "100k":
        (folder / "u.data").write_text("".join(f"{u}\t{m}\t{s:.0f}\t{t}\n" for u, m, s, t in rows))
        lines = [
            "|".join(
                [f"{m}", f"Caf\xe9 {m} (1995)", "01-Jan-1995", "", "http://x"]
                + [str(int(genre in genres(m))) for genre in GENRES_OF_100K]
            )
            for m in range(1, MOVIES + 1)
        ]
        (folder / "u.item").write_bytes(("\n".join(lines) + "\n").encode("latin-1"))
        (folder / "u.user").write_text(
            "".join(f"{u}|{20 + u % 9}|{'MF'[u % 2]}|job{u % 4}|55{u:03}\n" for u in range(1, USERS + 1))
        )
    elif kind == "1m":
        (folder / "ratings.dat").write_text("".join(f"{u}::{m}::{s:.0f}::{t}\n" for u, m, s, t in rows))
        lines = [
            f"{m}::Caf\xe9 {m} (1995)::{'|'.join(genres(m)) or '(no genres listed)'}" for m in range(1, MOVIES + 1)
        ]
        (folder / "movies.dat").write_bytes(("\n".join(lines) + "\n").encode("latin-1"))
        (folder / "users.dat").write_text(
            "".join(f"{u}::{'MF'[u % 2]}::{20 + u % 9}::job{u % 4}::55{u:03}\n" for u in range(1, USERS + 1))
        )
    else:
        (folder / "ratings.csv").write_text(
            "userId,movieId,rating,timestamp\n" + "".join(f"{u},{m},{s:.1f},{t}\n" for u, m, s, t in rows)
        )
        lines = [
            f'{m},"Film, The {m} (1995)",{"|".join(genres(m)) or "(no genres listed)"}' for m in range(1, MOVIES + 1)
        ]
        (folder / "movies.csv").write_text("\n".join(["movieId,title,genres", *lines]) + "\n")
    return folder


@pytest.mark.parametrize("kind", ["100k", "1m", "20m"])
def test_every_format_is_read_alike(tmp_path: Path, kind: str) -> None:
    wanted, folder = ratings(), str(write(tmp_path / "ml", kind, ratings()))
    assert find_format(folder) == kind
    found = read_interactions(f"{folder}/{FORMATS[kind].ratings}", FORMATS[kind].form, {}).ratings
    for column in ("users", "items", "scores", "times"):
        np.testing.assert_array_equal(getattr(found, column), getattr(wanted, column))
    assert read_genres(folder, kind) == {
        movie: sorted(genres(movie), key=GENRES_OF_100K.index) if kind == "100k" else genres(movie)
        for movie in range(1, MOVIES + 1)
    }
    users = read_users(folder, kind)
    assert users.get(7) == (None if kind == "20m" else {"gender": "F", "age": "27", "occupation": "job3"})
    assert len(users) == (0 if kind == "20m" else USERS)


def test_leave_one_out_holds_out_the_last_two_of_each_user() -> None:
    found = ratings()
    few = Ratings(
        users=np.array([99, 99]), items=np.array([1, 2]), scores=np.ones(2, np.float32), times=np.array([5, 6])
    )
    both = Ratings(**{name: np.concatenate([getattr(found, name), getattr(few, name)]) for name in vars(found)})
    parts = leave_one_out(both)
    for user in range(1, USERS + 1):
        order = np.argsort(both.times[both.users == user], kind="stable")
        items = both.items[both.users == user][order].tolist()
        got = {name: part.items[part.users == user].tolist() for name, part in parts.items()}
        assert got == {"train": items[:-2], "val": items[-2:-1], "test": items[-1:]}
    assert sum(part.users.tolist().count(99) for part in parts.values()) == parts["train"].users.tolist().count(99) == 2


def test_the_latest_ratings_are_held_out() -> None:
    found = ratings()
    parts = by_time(found, val_share=0.2, test_share=0.1)
    assert sum(map(len, parts.values())) == len(found)
    assert len(parts["test"]) == round(0.1 * len(found))
    assert (
        parts["train"].times.max() <= parts["val"].times.min() <= parts["val"].times.max() <= parts["test"].times.min()
    )


def test_negatives_were_never_rated_and_are_the_same_for_a_seed() -> None:
    found = ratings()
    split = leave_one_out(found)["test"]
    rows, labels = with_negatives(split, found, per_positive=9, seed=1)
    assert len(rows) == 10 * len(split)
    np.testing.assert_array_equal(labels, np.tile([1] + [0] * 9, len(split)))
    np.testing.assert_array_equal(rows.items[labels == 1], split.items)
    np.testing.assert_array_equal(rows.users, np.repeat(split.users, 10))
    rated = set(zip(found.users.tolist(), found.items.tolist(), strict=True))
    drawn = list(zip(rows.users[labels == 0].tolist(), rows.items[labels == 0].tolist(), strict=True))
    assert not rated & set(drawn)
    assert {item for _, item in drawn} == set(found.items.tolist())  # 360 draws of 60
    again, _ = with_negatives(split, found, per_positive=9, seed=1)
    other, _ = with_negatives(split, found, per_positive=9, seed=2)
    np.testing.assert_array_equal(again.items, rows.items)
    assert (other.items != rows.items).any()


def test_negatives_are_uniform_over_what_is_left() -> None:
    known = Ratings(
        users=np.array([1, 1, 2, 2, 2, 2]), items=np.array([10, 20, 10, 20, 30, 40]), scores=np.ones(6, np.float32),
        times=np.arange(6),
    )  # fmt: skip
    rows, labels = with_negatives(known.select(np.array([0])), known, per_positive=10_000, seed=0)
    drawn, counts = np.unique(rows.items[labels == 0], return_counts=True)
    assert drawn.tolist() == [30, 40]
    assert abs(counts[0] - 5000) < 5 * 50
    with pytest.raises(
        ValueError, match="every user must leave items to draw negatives from: got 2 with all items; leave it"
    ):
        with_negatives(known, known, per_positive=1, seed=0)


def prepare(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return run_python([str(ROOT / "data/movielens/prepare.py"), f"--input={folder}", *options], folder.parent)


@pytest.mark.parametrize(("kind", "options"), [("1m", []), ("20m", ["--task=implicit", "--split=leave_one_out"])])
def test_prepared_folders_are_what_was_asked_for_and_train(tmp_path: Path, kind: str, options: list[str]) -> None:
    wanted, output = ratings(), tmp_path / "prepared"
    done = prepare(write(tmp_path / "ml", kind, wanted), f"--output={output}", *options)
    assert done.returncode == 0, done.stderr
    manifest = Manifest.load(str(output))
    names = ["user", "movie", "genres", *(["gender", "age", "occupation"] if kind == "1m" else [])]
    assert [feature.name for feature in manifest.spec.sparse] == names
    rows = {name: split.rows for name, split in manifest.splits.items()}
    val = pq.read_table(output / "val").to_pydict()
    if options:
        assert rows == {"train": 5 * (len(wanted) - 2 * USERS), "val": 100 * USERS, "test": 100 * USERS}
        assert sum(val["label"]) == USERS
    else:
        held = round(0.1 * len(wanted))
        assert rows == {"train": len(wanted) - 2 * held, "val": held, "test": held}
        part = by_time(wanted, val_share=0.1, test_share=0.1)["val"]
        assert val["label"] == [float(score >= 4) for score in part.scores]
        assert val["days"] == pytest.approx(np.log1p((part.times - wanted.times.min()) / 86_400))
        assert [len(each) for each in val["genres"]] == [len(genres(int(movie))) for movie in part.items]
    small = ["--batch-size=64", "--epochs=2", "--eval-every=0", "--bottom", "8", "4", "--top", "8", "1"]
    metrics = run_recipe("train_dlrm", ["demo", f"--data={output}", *small, f"--run-dir={tmp_path}/run"], 1)
    assert metrics["val/samples"] == rows["val"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "error: input .*ml must be a file, a folder with files or a pattern: got no file; check the path"),
        ({"u.data": "1\t2\t3\t4\n1\t2\tx\t4\n"}, "'rating' of .* must have a fit value in every row: got 'x' in row 2"),
        ({"u.data": "1\t2\t3\n"}, "columns must name each of the 3 columns of .*u.data: got 4 names"),
        ({"u.data": "1\t2\t3\t4\n5\t6\n"}, "must hold rows like its first one: got one in line 2 with not 4 columns"),
        ({"u.data": ""}, "u.data must have rows: got none"),
        ({"u.data": "1\t2\t3\t900000000\n", "u.item": "x|y\n"}, "must begin every row with an id: got .'x', 'y'."),
        ({"a.csv": "who,what\n1,2\n"}, "must have a column of the user: got .'who', 'what'.; name it with --user"),
        ({"a.csv": "user,item\n1,2\n"}, "must have ratings for --task explicit: got none; name --rating, or use impl"),
        ({"a.csv": "user,item,rating\n1,2,3\n"}, "must have times for --split time: got none; name --time, or use"),
    ],
)  # fmt: skip
def test_folders_that_are_refused(tmp_path: Path, files: dict[str, str], message: str) -> None:
    (tmp_path / "ml").mkdir()
    for name, text in files.items():
        (tmp_path / "ml" / name).write_text(text)
    done = prepare(tmp_path / "ml", f"--output={tmp_path}/prepared")
    assert done.returncode == 1
    assert re.search(message, done.stderr), done.stderr


def gowalla(found: Ratings, path: Path) -> list[str]:
    """Users and places that are texts, times, and columns that are not wanted, without a header; gzip."""
    rows = zip(found.users, found.times, found.items, strict=True)
    lines = [
        f"{user}\t{datetime.fromtimestamp(time, UTC):%Y-%m-%dT%H:%M:%SZ}\t30.2\t-97.7\tplace {item}"
        for user, time, item in rows
    ]
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    return ["--columns", "user", "time", "lat", "lon", "spot", "--item", "spot", "--task=implicit"]


def amazon(found: Ratings, path: Path) -> list[str]:
    """Products that are texts, with ratings; Parquet without times, in two parts."""
    path.mkdir()
    for part in range(2):
        half = found.select(np.arange(len(found)) // (len(found) // 2 + 1) == part)
        items = [f"B{item:03}" for item in half.items]
        table = {"reviewerID": [f"A{user}" for user in half.users], "asin": items, "overall": half.scores}
        pq.write_table(pa.table(table), path / f"part-{part}")
    return ["--split=leave_one_out"]


@pytest.mark.parametrize("write_list", [gowalla, amazon])
def test_lists_of_ones_own_are_prepared(tmp_path: Path, write_list: Callable[[Ratings, Path], list[str]]) -> None:
    found, output = ratings(), tmp_path / "prepared"
    found = Ratings(**vars(found) | {"times": np.random.default_rng(1).permutation(len(found)) + 9 * 10**8})
    options = write_list(found, tmp_path / "list")
    done = prepare(tmp_path / "list", f"--output={output}", *options)
    assert done.returncode == 0, done.stderr
    manifest = Manifest.load(str(output))
    assert [feature.name for feature in manifest.spec.sparse] == ["user", "item"]
    val = pq.read_table(output / "val").to_pydict()
    items = ["", "", *pq.read_table(output / "vocab/item.parquet")["value"].to_pylist()]
    if write_list is gowalla:
        part = by_time(found, val_share=0.1, test_share=0.1)["val"]
        positive = [i for i, label in enumerate(val["label"]) if label]
        assert [items[val["item"][i]] for i in positive] == [f"place {item}" for item in part.items]
        days = (part.times - found.times.min()) / 86_400
        assert [val["days"][i] for i in positive] == pytest.approx(np.log1p(days), rel=1e-5)
    else:
        part = leave_one_out(Ratings(**vars(found) | {"times": np.zeros(len(found), np.int64)}))["val"]
        assert Counter(items[i] for i in val["item"]) == Counter(f"B{item:03}" for item in part.items)
        assert sum(val["label"]) == (part.scores >= 4).sum()
        assert "days" not in val


def test_movielens_without_genres_is_prepared(tmp_path: Path) -> None:
    folder, output = write(tmp_path / "ml", "100k", ratings()), tmp_path / "prepared"
    for name in ("u.item", "u.user"):
        (folder / name).unlink()
    done = prepare(folder, f"--output={output}")
    assert done.returncode == 0, done.stderr
    assert [feature.name for feature in Manifest.load(str(output)).spec.sparse] == ["user", "movie"]
