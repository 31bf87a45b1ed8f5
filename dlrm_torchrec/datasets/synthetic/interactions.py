"""Synthetic interactions of users with items, in latent groups, with a known best possible ranking."""

from __future__ import annotations

from collections.abc import Generator
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from dlrm_torchrec.datasets.ahead import BATCHES_AHEAD, ahead
from dlrm_torchrec.datasets.batch import Batch
from dlrm_torchrec.datasets.block import joined
from dlrm_torchrec.datasets.jagged import to_batch
from dlrm_torchrec.datasets.numpy_columns import Columns, IdLists
from dlrm_torchrec.datasets.random import counter
from dlrm_torchrec.datasets.spec_checks import require
from dlrm_torchrec.datasets.stream import Ranks
from dlrm_torchrec.datasets.synthetic.zipf import Zipf
from dlrm_torchrec.schema import DatasetSpec

_SPLITS = ("train", "val")
_HELD_OUT_NEGATIVES = 99  # arXiv 1708.05031

Ints = NDArray[np.int64]


class InteractionStream:
    """Interactions (label 1), each followed by negatives: other items, uniform, for the same user (label 0).

    A user or an item with id i is in group i mod ``groups``. With probability ``loyalty``, an interaction is with an
    item of the user's own group, otherwise with an item of any group. Within the group, items have a Zipf distribution.
    ``val`` has one interaction of each user. Every row is a function of (seed, split, index of the row), and the next
    epoch has other rows.
    """

    def __init__(
        self,
        spec: DatasetSpec,
        *,
        split: Literal["train", "val"] = "train",
        num_rows: int = 0,
        negatives: int = 4,
        ranks: Ranks,
        seed: int = 0,
        groups: int = 16,
        loyalty: float = 0.8,
        exponent: float = 1.1,
    ) -> None:
        """``num_rows`` and ``negatives`` are for ``train``; the sparse features of ``spec`` are user and item."""
        require(spec, "synthetic interactions", id_weights=False)
        self.spec = spec
        self._users, self._items = (feature.rows for feature in spec.sparse)
        if self._items % groups:
            raise ValueError(f"number of items must be a multiple of {groups} groups: got {self._items}; round it")
        self._negatives = negatives if split == "train" else _HELD_OUT_NEGATIVES
        self.num_rows = num_rows if split == "train" else self._users * (1 + self._negatives)
        self.num_steps = -(-self.num_rows // ranks.global_batch_size)
        self._ranks = ranks
        self._split = split
        self._key = counter.words(counter.words(seed, 2), _SPLITS.index(split))
        self._groups, self._loyalty = groups, loyalty
        self._zipf = Zipf(self._items // groups, exponent)

    def batches(self, start_step: int = 0) -> Generator[Batch, None, None]:
        """This rank's share of the global batches ``start_step`` .. ``num_steps - 1``.

        A thread makes them in advance. With a GPU, they lie in pinned memory.
        """
        return ahead(self._batches(start_step), BATCHES_AHEAD)

    def _batches(self, start_step: int) -> Generator[Batch, None, None]:
        pin_memory = torch.cuda.is_available()
        for first, share in self._ranks.shares(self.num_rows, start_step):
            users, items, labels = self.rows(first, first + share.num_rows)
            dense = np.empty((share.num_rows, 0), np.float32)
            rows = joined(Columns(labels, dense, [IdLists(users), IdLists(items)]), np.int64)
            yield to_batch(self.spec, [rows], share, pin_memory=pin_memory)

    def rows(self, first: int, last: int) -> tuple[Ints, Ints, NDArray[np.float32]]:
        """Users, items and labels of the rows ``first`` .. ``last - 1`` of the split, the same on every rank."""
        interaction, place = np.divmod(np.arange(first, last), 1 + self._negatives)
        keys = counter.words(self._key, interaction)
        users = interaction if self._split == "val" else _below(self._users, keys, 0)
        loyal = counter.uniforms(counter.words(keys, 1)) < self._loyalty
        group = np.where(loyal, users % self._groups, _below(self._groups, keys, 2))
        positives = self._zipf.ids(counter.uniforms(counter.words(keys, 3))) * self._groups + group
        distance = 1 + _below(self._items - 1, keys, 4 + place)  # to an item that is not the positive
        items = np.where(place == 0, positives, (positives + distance) % self._items)
        return users, items, (place == 0).astype(np.float32)

    def rankings(self) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        """Users, labels, and the scores of the best ranking and of popularity, for every row of the split.

        Negatives are uniform, so the best ranking orders items by P(item | user), the ``teacher`` (Neyman and Pearson).
        No model can expect a higher HR@k. ``popularity`` orders items by P(item). A model that is not better than that
        has learned nothing about users.
        """
        users, items, labels = self.rows(0, self.num_rows)
        within = self._zipf.probabilities()[items // self._groups]
        own = users % self._groups == items % self._groups
        users_of = np.bincount(np.arange(self._users) % self._groups, minlength=self._groups) / self._users
        teacher, popularity = (
            within * (self._loyalty * share + (1 - self._loyalty) / self._groups)
            for share in (own, users_of[items % self._groups])
        )
        scores = {"teacher": torch.from_numpy(teacher), "popularity": torch.from_numpy(popularity)}
        return torch.from_numpy(users), torch.from_numpy(labels), scores


def _below(bound: int, keys: counter.Words, number: int | Ints) -> Ints:
    """Random integers, uniform in [0, bound)."""
    return (counter.uniforms(counter.words(keys, number)) * bound).astype(np.int64)
