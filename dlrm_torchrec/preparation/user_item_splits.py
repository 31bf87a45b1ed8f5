"""Splits of users' ratings by time or by each user's last items, and negatives: items that a user has not rated."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Ratings:
    """N ratings: user, item, score and time (N,) each."""

    users: Ints
    items: Ints
    scores: NDArray[np.float32]
    times: Ints

    def __len__(self) -> int:
        return len(self.users)

    def select(self, which: NDArray[np.bool_] | Ints) -> Ratings:
        """Some of the ratings; if ``which`` holds positions, in their order."""
        return Ratings(
            users=self.users[which], items=self.items[which], scores=self.scores[which], times=self.times[which]
        )


def leave_one_out(ratings: Ratings) -> dict[str, Ratings]:
    """Each user's last rating in ``test``, the one before it in ``val``, the others in ``train``.

    All ratings of a user with fewer than three are in ``train``. Ratings with the same time keep the order of the file.
    Source of the protocol: X. He et al., "Neural Collaborative Filtering", WWW 2017 (arXiv 1708.05031), section 4.1.
    """
    order = np.lexsort((ratings.times, ratings.users))  # stable, so that ties stay in the order of the file
    users = ratings.users[order]
    starts = np.flatnonzero(np.concatenate([[True], users[1:] != users[:-1]]))
    counts = np.diff(np.append(starts, len(users)))
    from_end = np.repeat(starts + counts, counts) - np.arange(len(users))
    held_out = np.repeat(counts >= 3, counts)
    place = np.where(held_out & (from_end <= 2), from_end, 0)
    return {name: ratings.select(order[place == number]) for name, number in (("train", 0), ("val", 2), ("test", 1))}


def by_time(ratings: Ratings, *, val_share: float, test_share: float) -> dict[str, Ratings]:
    """The earliest ratings in ``train``, then ``val``, and the latest in ``test``."""
    if min(val_share, test_share) < 0 or val_share + test_share >= 1:
        raise ValueError(
            f"shares of val and test must be at least 0 and sum to less than 1: got {val_share} and {test_share}; "
            "lower them"
        )
    order = np.argsort(ratings.times, kind="stable")
    test = len(order) - round(test_share * len(order))
    val = test - round(val_share * len(order))
    pieces = {"train": order[:val], "val": order[val:test], "test": order[test:]}
    return {name: ratings.select(piece) for name, piece in pieces.items()}


def with_negatives(
    split: Ratings, known: Ratings, *, per_positive: int, seed: int
) -> tuple[Ratings, NDArray[np.float32]]:
    """Each rating of ``split``, followed by ``per_positive`` items that its user has not rated in ``known``; labels.

    Negatives are drawn uniformly, with repetition, from the items of ``known`` that the user has not rated. They have
    the time of their positive. Raises ValueError when a user has rated every item.
    """
    items, item_of = np.unique(known.items, return_inverse=True)
    people, user_of = np.unique(known.users, return_inverse=True)
    met = np.unique(user_of * len(items) + item_of)
    full = np.flatnonzero(np.bincount(met // len(items), minlength=len(people)) == len(items))
    wanted = np.searchsorted(people, split.users)
    if per_positive and np.isin(wanted, full).any():
        user = people[full[np.isin(full, wanted)][0]]
        raise ValueError(f"every user must leave items to draw negatives from: got {user} with all items; leave it out")
    random = np.random.default_rng(seed)
    users = np.repeat(wanted, per_positive)
    drawn = np.empty(len(users), dtype=np.int64)
    open_ = np.arange(len(users))
    while len(open_):
        drawn[open_] = random.integers(0, len(items), len(open_))
        keys = users[open_] * len(items) + drawn[open_]
        place = np.searchsorted(met, keys).clip(max=len(met) - 1)
        open_ = open_[met[place] == keys]
    rows = np.repeat(np.arange(len(split)), 1 + per_positive)
    negative = np.arange(len(rows)) % (1 + per_positive) != 0
    chosen = split.items[rows]
    chosen[negative] = items[drawn]
    return replace(split.select(rows), items=chosen), (~negative).astype(np.float32)
