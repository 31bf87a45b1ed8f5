"""The random split of Criteo_x4 (BARS): ten parts with as many positive rows each, dealt out by a seed."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from dlrm_torchrec.preparation.readers.lines import read_lines
from dlrm_torchrec.preparation.readers.rows import Ints, Rows

Parts = npt.NDArray[np.uint8]
SEED = 2018  # of the published split
_PARTS = 10
_PLACES = np.array([2, 1, *(0 for _ in range(_PARTS - 2))])  # in ``Stratified.splits``, of each part


@dataclass(frozen=True)
class Stratified:
    """The first of ten stratified parts of a file of labelled lines is 'test', the second is 'val'.

    The lines begin with their label, 0 or 1. Each process reads the labels of the whole file once, and keeps a byte for
    each line. Every part has a tenth of the rows of each label.
    """

    path: str

    @property
    def splits(self) -> tuple[str, ...]:
        return ("train", "val", "test")

    def __call__(self, rows: Rows) -> Ints:
        places: Ints = _PLACES[parts_of(self.path)[rows.numbers - 1]]
        return places


@lru_cache(maxsize=1)
def parts_of(path: str) -> Parts:
    """The part (N,) of each line of a file; that of an empty line has no meaning."""
    labels, filled = [], []
    for lines in read_lines(path):
        filled.append(lines.starts < lines.ends)
        labels.append(lines.data[np.minimum(lines.starts, len(lines.data) - 1)] == ord("1"))
    known = np.concatenate(filled)
    parts = np.zeros(len(known), np.uint8)
    parts[known] = stratified_parts(np.concatenate(labels)[known], _PARTS, SEED)
    return parts


def stratified_parts(labels: npt.NDArray[np.bool_], parts: int, seed: int) -> Parts:
    """The part (N,) of each of N rows with these labels: the tests of scikit-learn's StratifiedKFold, shuffled.

    It is that of scikit-learn 0.22 and later. The rows of the label that comes first are dealt out first: row i of all
    rows in the order of their labels would be in part i mod ``parts``, and the parts of each label are then shuffled.
    """
    random = np.random.RandomState(seed)
    found = np.empty(len(labels), np.uint8)
    start = 0
    for label in (labels[:1], ~labels[:1]):
        mine = labels == label
        end = start + int(mine.sum())
        dealt = np.repeat(np.arange(parts, dtype=np.uint8), [_count(part, start, end, parts) for part in range(parts)])
        random.shuffle(dealt)
        found[mine] = dealt
        start = end
    return found


def csv_digest(path: str, part: int, columns: tuple[str, ...]) -> str:
    """The MD5 of the lines of a part as a CSV file with a header, by which BARS tells its files."""
    digest = hashlib.md5(f"{','.join(columns)}\n".encode(), usedforsecurity=False)
    parts = parts_of(path)
    for lines in read_lines(path):
        chosen = lines.select((parts[lines.numbers - 1] == part) & (lines.starts < lines.ends))
        text = b"".join(chosen.text(i) + b"\n" for i in range(len(chosen)))
        digest.update(text.replace(b"\t", b","))
    return digest.hexdigest()


def _count(part: int, start: int, end: int, parts: int) -> int:
    """How many of the numbers from ``start`` up to ``end`` leave the remainder ``part``."""
    return len(range(part, end, parts)) - len(range(part, start, parts))
