"""A trained model of next items as one function of tensors, which checks ids and returns the best of all items."""

from typing import Any, cast

import torch
from torch import nn

from dlrm_torchrec.inference.ranking.top_items import ItemRows, TopItems
from dlrm_torchrec.inference.scoring import UNSEEN, traced
from dlrm_torchrec.inference.tables.ids import ServedIdTables
from dlrm_torchrec.schema import DatasetSpec


class NextItems(nn.Module):
    """The best items after each history; TorchScript compiles this module, which has the only lookup of the table."""

    def __init__(self, top: TopItems, states: nn.Module) -> None:
        super().__init__()
        self.top, self.states = top, states

    def forward(  # noqa: PLR0917  # programs have no keywords
        self,
        ids: torch.Tensor,
        times: torch.Tensor,
        lengths: torch.Tensor,
        num_candidates: torch.Tensor,
        items: torch.Tensor,
        most: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids (B, k) and scores (B, k) of the best items; items of a sample's history are no answers."""
        states = self.states(self.top.rows(ids), times, lengths, num_candidates)
        owners = torch.repeat_interleave(lengths)
        place = torch.arange(ids.size(0)) - (lengths.cumsum(0) - lengths)[owners]
        happened = place < (lengths - num_candidates)[owners]
        best, scores = self.top(states, items, taken=ids[happened], takers=owners[happened], most=most)
        return best, scores


class NextItemScorer(nn.Module):
    """The best of all items for each history; ids may be out of range."""

    def __init__(self, model: nn.Module, spec: DatasetSpec) -> None:
        """``model`` is a ``NextItemModel`` with ``ServedIdTables`` as its ``tables``.

        ``spec`` has one feature, the item; the table also has the feature of the items that are told from, which is
        not looked up.
        """
        super().__init__()
        (item,), next_item = spec.sparse, cast(Any, model).score.next_item
        rows = ItemRows(cast(ServedIdTables, model.tables).lookup, num_features=2)
        self.best = NextItems(TopItems(rows, next_item.scores), traced(next_item.served()))
        self.num_ids, self.replacement = item.ids, UNSEEN.get(item.encoding, 0)

    def forward(  # noqa: PLR0917  # programs have no keywords
        self,
        ids: torch.Tensor,
        times: torch.Tensor,
        actions: torch.Tensor,  # noqa: ARG002  # models of next items do not read them
        lengths: torch.Tensor,
        num_candidates: torch.Tensor,
        items: torch.Tensor,
        most: int,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Ids (B, k) and scores (B, k) of the best items, and how many ids (1,) are outside the table.

        The first five arguments are those of ``SequenceScorer``, where each sample has a history and one candidate,
        which says by its time when the next item is asked for, and whose id changes nothing. ``items`` (N,) are the ids
        of all items that may be answers, ascending, and k = min(``most``, N). A score of -inf is no answer.
        """
        outside = (ids < 0) | (ids >= self.num_ids)
        known = torch.where(outside, self.replacement, ids)
        found = self.best(known, times, lengths, num_candidates, items, most)
        return found[0], found[1], outside.sum().reshape(1)
