"""The items with the highest scores among all items, a block of items at a time."""

import torch
from torch import nn

from dlrm_torchrec.inference.tables.ids import IdLookup

BLOCK_ITEMS = 8192  # whose rows are looked up at once
BLOCK_SCORES = 2**22  # held at once, 16 MiB, unless that is less than LEAST_ITEMS for each state
LEAST_ITEMS = 256


class ItemRows(nn.Module):
    """The rows (n, dim) of items (n,), from the table that the first of ``num_features`` features looks up."""

    def __init__(self, lookup: IdLookup, num_features: int) -> None:
        super().__init__()
        self.lookup, self.others = lookup, [0] * (num_features - 1)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        counts = torch.tensor([ids.size(0)] + self.others)  # noqa: RUF005  # TorchScript cannot unpack
        rows: torch.Tensor = self.lookup(ids, counts)[0]
        return rows


class TopItems(nn.Module):
    """The items with the highest scores for each of B states; TorchScript can compile this module.

    Memory does not grow with the number of items: rows are looked up and scored a block at a time, and only the best so
    far are kept. Items of equal scores come in any order.
    """

    def __init__(self, rows: nn.Module, score: nn.Module, *, numbers: int = 1) -> None:
        """``rows`` maps ids (n,) to rows (n, dim), and ``score`` states (B, ...) and these rows to scores (B, n).

        ``score`` holds so many ``numbers`` for each of them.
        """
        super().__init__()
        self.rows, self.score = rows, score
        self.block_items, self.block_scores, self.least_items = BLOCK_ITEMS, BLOCK_SCORES // numbers, LEAST_ITEMS

    def forward(
        self,
        states: torch.Tensor,
        items: torch.Tensor,
        *,
        taken: torch.Tensor,
        takers: torch.Tensor,
        most: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids (B, k) and scores (B, k), the highest first, of the best k = min(``most``, N) items; -inf is no answer.

        Args:
            states: (B, ...)
            items: (N,) ids of all items that may be answers, ascending
            taken: (T,) ids of items that are no answers for one state
            takers: (T,) the number of that state
            most: answers of a state
        """
        count = states.size(0)
        places = torch.searchsorted(items, taken)
        is_item = torch.searchsorted(items, taken, right=True) > places
        places, takers = places[is_item], takers[is_item]
        best = torch.empty((count, 0), dtype=torch.int64)
        scores = torch.empty((count, 0))
        block = min(self.block_items, max(self.least_items, self.block_scores // max(1, count)))
        for first in range(0, items.size(0), block):
            ids = items[first : first + block]
            found = self.score(states, self.rows(ids))
            here = (places >= first) & (places < first + block)
            found[takers[here], places[here] - first] = float("-inf")
            top, order = found.topk(min(most, ids.size(0)), dim=1)
            scores, best = torch.cat([scores, top], dim=1), torch.cat([best, ids[order]], dim=1)
            scores, order = scores.topk(min(most, scores.size(1)), dim=1)
            best = best.gather(1, order)
        return best, scores
