"""Reads MovieLens as published: ratings, movies and users, from the files of 100K, 1M, 20M and 25M.

Source: F. M. Harper, J. A. Konstan, "The MovieLens Datasets: History and Context", ACM TiiS 5(4), 2015, and the README
files of the data sets.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from iopath.common.file_io import g_pathmgr

from dlrm_torchrec.datasets.prepared.manifest import join
from dlrm_torchrec.preparation.readers.fields import parse_int64, parse_text, split_fields, split_line
from dlrm_torchrec.preparation.readers.lines import read_lines
from dlrm_torchrec.preparation.user_item_splits import Ratings
from dlrm_torchrec.raw_values import NUMBER

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


@dataclass(frozen=True)
class Format:
    """The files of one data set; each rating has a user, a movie, a rating and a time in seconds, in this order."""

    ratings: str
    separator: str  # one character; "::" counts as ":", an empty field, and ":"
    header: bool
    movies: str
    users: str = ""  # empty if the data set tells nothing about users

    @property
    def columns(self) -> list[int]:
        """The positions of the four columns among the fields."""
        return [0, 2, 4, 6] if self.separator == ":" else [0, 1, 2, 3]


FORMATS = {
    "100k": Format("u.data", "\t", header=False, movies="u.item", users="u.user"),
    "1m": Format("ratings.dat", ":", header=False, movies="movies.dat", users="users.dat"),
    "20m": Format("ratings.csv", ",", header=True, movies="movies.csv"),
}


def find_format(folder: str) -> str:
    """The name in ``FORMATS`` for a folder, found by its file of ratings. Raises ValueError if none is there."""
    names = g_pathmgr.ls(folder) if g_pathmgr.isdir(folder) else []
    for name, files in FORMATS.items():
        if files.ratings in names:
            return name
    raise ValueError(
        f"input {folder} must hold one of {[files.ratings for files in FORMATS.values()]}: got {sorted(names)[:10]}; "
        "name the folder that MovieLens unpacks to"
    )


def read_ratings(folder: str, kind: str) -> Ratings:
    """All ratings in the order of the file. Raises ValueError with the first line that is not a rating."""
    files = FORMATS[kind]
    path = join(folder, files.ratings)
    integers, scores = [], []
    for block in read_lines(path):
        lines = block.select((block.starts < block.ends) & ~((block.numbers == 1) & files.header))
        fields, malformed = split_fields(lines, files.separator, max(files.columns) + 1)
        user, movie, rating, time = (fields.columns(column, column + 1) for column in files.columns)
        text, _ = parse_text(rating, 0)
        number = pc.match_substring_regex(text, NUMBER).fill_null(fill_value=False)
        for column in (user, movie, time):
            values, bad = parse_int64(column)
            integers.append(values[:, 0])
            malformed |= bad[:, 0] | np.isnan(values[:, 0])
        malformed |= ~number.to_numpy(zero_copy_only=False)
        if malformed.any():
            first = int(malformed.argmax())
            raise ValueError(
                f"{path} must hold user, movie, rating and time in every line: got {lines.text(first)[:80]!r} in line "
                f"{lines.numbers[first]}; repair the file"
            )
        scores.append(text.cast(pa.float32()).to_numpy())
    if not scores or not sum(map(len, scores)):
        raise ValueError(f"{path} must hold ratings: got none; unpack it again")
    users, movies, times = (np.concatenate(integers[number::3]).astype(np.int64) for number in range(3))
    return Ratings(users=users, items=movies, scores=np.concatenate(scores), times=times)


def read_genres(folder: str, kind: str) -> dict[int, list[str]]:
    """The genres of each movie; an empty list if it has none."""
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
    """Gender, age (in 1M an age group) and occupation of each user; empty if the data set does not tell them."""
    if not FORMATS[kind].users:
        return {}
    cells = _cells(join(folder, FORMATS[kind].users), kind)
    if kind == "100k":
        return {int(user): {"gender": gender, "age": age, "occupation": job} for user, age, gender, job, _ in cells}
    return {int(user): {"gender": gender, "age": age, "occupation": job} for user, gender, age, job, _ in cells}


def _cells(path: str, kind: str) -> Iterator[list[str]]:
    """The fields of each line of a small file."""
    with g_pathmgr.open(path, "rb") as stream:
        lines = stream.read().splitlines()
    for number, line in enumerate(lines[FORMATS[kind].header :], 1 + FORMATS[kind].header):
        if kind == "20m":
            parts = [part.decode() for part in split_line(line, ",") or []]
        else:
            parts = line.decode("latin-1").split("|" if kind == "100k" else "::")
        if len(parts) < 3 or not parts[0].isdigit():
            raise ValueError(f"{path} must begin every line with an id: got {line[:80]!r} in line {number}; repair it")
        yield parts
