"""The files of MovieLens as published, and what they tell about movies and users: 100K, 1M, 20M and 25M.

Source: F. M. Harper, J. A. Konstan, "The MovieLens Datasets: History and Context", ACM TiiS 5(4), 2015, and the README
files of the data sets.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from iopath.common.file_io import g_pathmgr

from dlrm_torchrec.datasets.prepared.manifest import join
from dlrm_torchrec.preparation.readers.tables import Form, whole

GENRES_OF_100K = (
    *(
        "unknown",
        "Action",
        "Adventure",
        "Animation",
        "Children's",
        "Comedy",
        "Crime",
        "Documentary",
        "Drama",
        "Fantasy",
    ),
    *("Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"),
)
NO_GENRES = "(no genres listed)"


_NAMES = ("user", "movie", "rating", "time")


@dataclass(frozen=True)
class Format:
    """The files of one data set; each rating has a user, a movie, a rating and a time in seconds, in this order."""

    ratings: str
    form: Form
    movies: str
    users: str = ""  # empty if the data set tells nothing about users


FORMATS = {
    "100k": Format("u.data", Form(separator="\t", names=_NAMES), movies="u.item", users="u.user"),
    "1m": Format("ratings.dat", Form(separator="::", names=_NAMES), movies="movies.dat", users="users.dat"),
    "20m": Format("ratings.csv", Form(separator=","), movies="movies.csv"),
}


def find_format(path: str) -> str:
    """The name in ``FORMATS`` for a folder, found by its file of ratings; empty if there is none."""
    names = g_pathmgr.ls(path) if g_pathmgr.isdir(path) else []
    return next((name for name, files in FORMATS.items() if files.ratings in names), "")


def read_genres(folder: str, kind: str) -> dict[int, list[str]]:
    """The genres of each movie, an empty list if it has none; empty if the folder has no file of movies."""
    if not g_pathmgr.isfile(join(folder, FORMATS[kind].movies)):
        return {}
    by_movie = {}
    for cells in _cells(join(folder, FORMATS[kind].movies), kind):
        if kind == "100k":
            genres = [
                genre for genre, flag in zip(GENRES_OF_100K, cells[-len(GENRES_OF_100K) :], strict=True) if flag == "1"
            ]
        else:
            genres = [genre for genre in cells[-1].split("|") if genre != NO_GENRES]
        by_movie[int(cells[0])] = genres
    return by_movie


def read_users(folder: str, kind: str) -> dict[int, dict[str, str]]:
    """Gender, age (in 1M an age group) and occupation of each user; empty if the folder does not tell them."""
    if not FORMATS[kind].users or not g_pathmgr.isfile(join(folder, FORMATS[kind].users)):
        return {}
    cells = _cells(join(folder, FORMATS[kind].users), kind)
    if kind == "100k":
        return {int(user): {"gender": gender, "age": age, "occupation": job} for user, age, gender, job, _ in cells}
    return {int(user): {"gender": gender, "age": age, "occupation": job} for user, gender, age, job, _ in cells}


def _cells(path: str, kind: str) -> Iterator[list[str]]:
    """The fields of each line of a small file, in Latin-1 or, in 20M, in UTF-8."""
    if kind == "20m":
        rows = zip(*(column.to_pylist() for column in whole(path, FORMATS[kind].form).values()), strict=True)
        cells = [[cell or "" for cell in row] for row in rows]
    else:
        with g_pathmgr.open(path, "rb") as stream:
            lines = stream.read().decode("latin-1").splitlines()
        cells = [line.split("|" if kind == "100k" else "::") for line in lines]
    for number, parts in enumerate(cells, 1):
        if len(parts) < 3 or not parts[0].isdigit():
            raise ValueError(f"{path} must begin every row with an id: got {parts[:3]} in row {number}; repair it")
        yield parts
