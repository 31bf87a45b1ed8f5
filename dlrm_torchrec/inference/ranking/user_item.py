"""A trained model of users and items as one function of tensors, which checks ids and returns the best of all items."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import nn

from dlrm_torchrec.inference.ranking.top_items import TopItems
from dlrm_torchrec.inference.scoring import UNSEEN, traced
from dlrm_torchrec.inference.tables.serve import ServedTables, TableLookup
from dlrm_torchrec.schema import DatasetSpec


class UserItemRows(nn.Module):
    """The rows (n, dim) of items (n,), and those of users."""

    def __init__(self, lookup: TableLookup, columns: tuple[str, str], features: Sequence[str]) -> None:
        """``lookup`` gives the vectors of the user and the item, the ``columns``, for batches of ``features``."""
        super().__init__()
        self.lookup, self.num_features = lookup, len(features)
        self.user, self.item = (features.index(name) for name in columns)
        places = [lookup.keys.index(name) for name in columns]
        self.of_user, self.of_item = (
            (sum(lookup.dims[:place]), sum(lookup.dims[: place + 1])) for place in places
        )  # first and last column

    def forward(self, ids: torch.Tensor, of_users: bool = False) -> torch.Tensor:  # noqa: FBT001, FBT002  # TorchScript's
        """The rows (n, dim) of items, or of users, of these ids (n,)."""
        feature, (first, end) = (self.user, self.of_user) if of_users else (self.item, self.of_item)
        lengths = torch.zeros((self.num_features, ids.size(0)), dtype=torch.int32)
        lengths[feature] = 1
        vectors: torch.Tensor = self.lookup(ids, lengths.flatten(), None).values()
        return vectors[:, first:end]


class Pairs(nn.Module):
    """Scores (B, n) of all pairs of B users and n items, by a model of one pair at a time."""

    def __init__(self, score: nn.Module) -> None:
        """``score`` maps rows of users (pairs, dim) and of items (pairs, dim) to logits (pairs, 1)."""
        super().__init__()
        self.score = score

    def forward(self, users: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        count, num_items = users.size(0), items.size(0)
        logits = self.score(users.repeat_interleave(num_items, dim=0), items.repeat(count, 1))
        of_pairs: torch.Tensor = logits.view(count, num_items)
        return of_pairs


class UserItems(nn.Module):
    """The best items of each user; TorchScript compiles this module, which has the only lookup of the tables."""

    def __init__(self, top: TopItems) -> None:
        super().__init__()
        self.top = top

    def forward(
        self, ids: torch.Tensor, lengths: torch.Tensor, items: torch.Tensor, most: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids (B, k) and scores (B, k) of the best items; those that a user has are no answers."""
        taken_by = lengths.view(2, -1)[1].long()
        users = ids[: taken_by.size(0)]
        states, takers = self.top.rows(users, of_users=True), torch.repeat_interleave(taken_by)
        best, scores = self.top(states, items, taken=ids[users.size(0) :], takers=takers, most=most)
        return best, scores


class UserItemScorer(nn.Module):
    """The best of all items for each user; ids may be out of range."""

    ids: torch.Tensor
    replacement: torch.Tensor

    def __init__(self, model: nn.Module, spec: DatasetSpec, features: Sequence[str]) -> None:
        """``model`` is a ``UserItemModel`` with ``ServedTables`` as its ``tables``, for batches of ``features``.

        ``spec`` has its two features, the user and the item.
        """
        super().__init__()
        user, item = (feature.name for feature in spec.sparse)
        rows = UserItemRows(cast(ServedTables, model.tables).lookup, (user, item), features)
        trained: Any = model.score
        whole = hasattr(trained, "served")  # else pairs are scored one by one, and a pair's row is held for each
        score = trained.served() if whole else Pairs(traced(trained))
        self.best = UserItems(TopItems(rows, score, numbers=1 if whole else max(rows.lookup.dims)))
        self.register_buffer("ids", torch.tensor([feature.ids for feature in spec.sparse]))
        self.register_buffer("replacement", torch.tensor([UNSEEN.get(each.encoding, 0) for each in spec.sparse]))

    def forward(  # noqa: PLR0917  # programs have no keywords
        self,
        dense: torch.Tensor,  # noqa: ARG002  # as other programs of rows
        ids: torch.Tensor,
        lengths: torch.Tensor,
        items: torch.Tensor,
        most: int,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Ids (B, k) and scores (B, k) of the best items, and how many ids of the two features (2,) are unknown.

        The first three arguments are those of ``Scorer``, for rows of one user and the items that are no answers for
        them. The other arguments and the results are those of ``NextItemScorer``.
        """
        feature = torch.repeat_interleave(lengths.view(2, -1).sum(1))
        outside = (ids < 0) | (ids >= self.ids[feature])
        unseen = torch.zeros_like(self.ids).index_add(0, feature, outside.long())
        known = torch.where(outside, self.replacement[feature], ids)
        found = self.best(known, lengths, items, most)
        return found[0], found[1], unseen
