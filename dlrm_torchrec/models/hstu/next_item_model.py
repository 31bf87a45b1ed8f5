"""The table of items and HSTU together: how likely each item comes next."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn.functional import normalize
from torchrec.modules.embedding_modules import EmbeddingCollection
from torchrec.sparse.jagged_tensor import JaggedTensor

from dlrm_torchrec.models.hstu.attention.layout import sent
from dlrm_torchrec.models.hstu.model import SequenceInputs
from dlrm_torchrec.models.hstu.next_item import NORM_EPS, HSTUNextItem
from dlrm_torchrec.models.hstu.tokens import Samples


class NextItemScores(nn.Module):
    """Logits of the item that comes, and of the items that a batch names beside it.

    In training, every event of a sample but the first is told, as in the paper. In evaluation, the last one is, and the
    items of its history are no answers.
    """

    def __init__(self, next_item: HSTUNextItem, item: str, drawn: str) -> None:
        """``item`` is the feature of events, and ``drawn`` that of the other items."""
        super().__init__()
        self.next_item, self.item, self.drawn = next_item, item, drawn

    def forward(self, rows: Mapping[str, JaggedTensor], batch: SequenceInputs) -> torch.Tensor:
        """Logits (R, 1 + N): that of the item that comes, and those of N others; -inf for what is no other answer.

        Rows may have more numbers than the model's dim, which are left out.
        """
        dim = self.next_item.config.dim
        items, others = (rows[name].values()[:, :dim] for name in (self.item, self.drawn))
        ids, other_ids = (batch.sparse_features[name].values() for name in (self.item, self.drawn))
        samples = Samples(batch.times, batch.actions, batch.lengths, batch.num_candidates)
        owners = samples.owners()
        places = samples.places(owners)
        asked = (places > 0 if self.training else places == batch.lengths[owners] - 1).nonzero().squeeze(1)
        owners, asked = (sent(each, batch.times.device) for each in (owners, asked))
        states = self.next_item(items, batch.times, batch.lengths)[asked - 1]
        comes = normalize(items[asked].to(states.dtype), dim=1, eps=NORM_EPS)
        own = (states * comes).sum(1, keepdim=True) / self.next_item.temperature
        no_answer = ids[asked, None] == other_ids
        if not self.training:
            no_answer |= self._seen(ids, other_ids, owners, num_samples=len(batch.lengths))[owners[asked]]
        scores = self.next_item.scores(states, others).masked_fill(no_answer, -torch.inf)
        return torch.cat([own, scores], dim=1)

    def _seen(
        self, ids: torch.Tensor, other_ids: torch.Tensor, owners: torch.Tensor, *, num_samples: int
    ) -> torch.Tensor:
        """Whether each sample has each of the others, (B, N); the item that comes is among them."""
        count = 1 + int(torch.cat([ids, other_ids]).max())
        seen = torch.zeros(num_samples, count, dtype=torch.bool, device=ids.device)
        seen[owners, ids] = True
        return seen[:, other_ids]


class NextItemModel(nn.Module):
    """Logits (R, 1 + N) that ``score`` computes from the rows of all ids of a batch."""

    def __init__(self, tables: EmbeddingCollection, score: NextItemScores) -> None:
        super().__init__()
        self.tables = tables
        self.score = score

    def forward(self, batch: SequenceInputs) -> torch.Tensor:
        """See ``NextItemScores``."""
        logits: torch.Tensor = self.score(self.tables(batch.sparse_features), batch)
        return logits
