"""Negatives that are drawn while interactions are read; every epoch has new ones."""

from __future__ import annotations

from collections.abc import Generator, Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from dlrm_torchrec.datasets.ahead import BATCHES_AHEAD, ahead
from dlrm_torchrec.datasets.batch import Batch
from dlrm_torchrec.datasets.block import Block
from dlrm_torchrec.datasets.jagged import to_batch
from dlrm_torchrec.datasets.prepared.parquet import ParquetStream
from dlrm_torchrec.datasets.random import counter
from dlrm_torchrec.datasets.spec_checks import require
from dlrm_torchrec.datasets.stream import Ranks, Share

_RESERVED = {"id": 0, "hash": 1, "bucket": 1, "vocab": 2}  # number of first ids that are not items
_BLOCK_ROWS = 65_536

Ints = NDArray[np.int64]


class WithNegatives:
    """Each interaction of a prepared ``train`` split (label 1), then ``count`` items its user did not choose (label 0).

    Negatives are drawn uniformly, with repetition, from all items that the user has no training interaction with;
    ``val`` and ``test`` do not matter. They are a function of (seed, step, place in the global batch), so that a
    resumed run has the same ones on any number of ranks. The batches that ``ranks`` cuts hold interactions and
    negatives together. Only the features ``user`` and ``item`` are filled, because other columns are unknown for a
    negative: other bags are empty and dense columns are 0. Every rank holds 8 bytes per interaction in memory.
    """

    def __init__(
        self, folder: str, user: str, item: str, count: int, *, ranks: Ranks, epochs: int, seed: int, lanes: int
    ) -> None:
        if ranks.global_batch_size % ((1 + count) * ranks.world_size):
            raise ValueError(
                f"global_batch_size must be a multiple of {ranks.world_size} ranks x {1 + count} rows of an "
                f"interaction and its negatives: got {ranks.global_batch_size}; choose a multiple"
            )
        self._interactions = ParquetStream(
            folder,
            "train",
            global_batch_size=ranks.global_batch_size // (1 + count),
            rank=ranks.rank,
            world_size=ranks.world_size,
            seed=seed,
            shuffle=True,
            epochs=epochs,
            lanes=lanes,
        )
        self.spec = self._interactions.spec
        require(self.spec, "drawing negatives", id_weights=False)
        self.num_steps = self._interactions.num_steps
        one_hot = {feature.name: feature for feature in self.spec.sparse if not feature.multi_hot}
        if not {user, item} <= one_hot.keys():
            raise ValueError(
                f"user and item must be one-hot features of the data: got {user!r} and {item!r}; "
                f"name two of {sorted(one_hot)}"
            )
        if one_hot[item].encoding not in _RESERVED:
            raise ValueError(
                f"items must be numbered for negatives to be drawn: got feature {item!r} of encoding "
                f"{one_hot[item].encoding!r}; prepare it with a vocabulary"
            )
        self._user, self._item, self._count, self._rank = user, item, count, ranks.rank
        self._key = counter.words(seed, 3)
        self._rows, self._reserved = one_hot[item].rows, _RESERVED[one_hot[item].encoding]
        self._known = self._pairs(folder)

    def batches(self, start_step: int = 0) -> Iterator[Batch]:
        """This rank's share of the global batches ``start_step`` .. ``num_steps - 1``, made in advance by a thread."""
        return ahead(self._batches(start_step), BATCHES_AHEAD)

    def _batches(self, start_step: int) -> Generator[Batch, None, None]:
        per_interaction = 1 + self._count
        for step, batch in enumerate(self._interactions.batches(start_step), start_step):
            users, items = (batch.sparse_features[name].values().numpy() for name in (self._user, self._item))
            place = self._rank * len(batch.labels) + np.arange(batch.num_rows)
            negatives = self._draw(users, counter.words(counter.words(self._key, step), place))
            rows, padded, global_rows = (
                per_interaction * each for each in (batch.num_rows, len(batch.labels), batch.global_rows)
            )
            block = self._block(users.repeat(per_interaction), np.column_stack([items, negatives]).ravel())
            block.labels[::per_interaction] = 1
            share = Share(self._rank * padded, rows, padded, global_rows)
            yield to_batch(self.spec, [block], share, pin_memory=torch.cuda.is_available())

    def _block(self, users: Ints, items: Ints) -> Block:
        """Rows of label 0 of these users and items (n,)."""
        count, filled = len(users), {self._user: users, self._item: items}
        values = [filled[feature.name] for feature in self.spec.sparse if feature.name in filled]
        lengths = np.array([[feature.name in filled] for feature in self.spec.sparse], np.int64)
        offsets = lengths * np.arange(count + 1) + count * (np.cumsum(lengths, axis=0) - lengths)
        dense = np.zeros((count, len(self.spec.dense)), np.float32)
        return Block(np.zeros(count, np.float32), dense, np.concatenate(values), offsets)

    def _draw(self, users: Ints, keys: counter.Words) -> Ints:
        """Items (n, count) that these users did not choose; an item that they chose is drawn again."""
        users, keys = users.repeat(self._count), keys.repeat(self._count)
        number = np.tile(np.arange(self._count), len(users) // self._count)
        items, left = np.empty(len(users), np.int64), np.arange(len(users))
        while len(left):
            draws = counter.uniforms(counter.words(keys[left], number[left]))
            items[left] = self._reserved + (draws * (self._rows - self._reserved)).astype(np.int64)
            pairs = users[left] * self._rows + items[left]
            left = left[self._known[np.searchsorted(self._known, pairs).clip(max=len(self._known) - 1)] == pairs]
            number[left] += self._count
        return items.reshape(-1, self._count)

    def _pairs(self, folder: str) -> Ints:
        """All interactions of the split as user x items + item, sorted."""
        pairs = []
        for batch in ParquetStream(folder, "train", global_batch_size=_BLOCK_ROWS, shuffle=False).batches():
            if not bool((batch.labels[: batch.num_rows] == 1).all()):
                raise ValueError(
                    f"training rows must all have label 1 if negatives are drawn: got rows of label 0 in {folder}; "
                    "prepare it with --negatives 0"
                )
            users, items = (batch.sparse_features[name].values().numpy() for name in (self._user, self._item))
            pairs.append(users * self._rows + items)
        known = np.unique(np.concatenate(pairs))
        met = np.bincount(known // self._rows)
        if met.max() >= self._rows - self._reserved:
            raise ValueError(
                f"every user must leave items to draw negatives from: got user {int(met.argmax())} with all items; "
                "leave this user out"
            )
        return known
