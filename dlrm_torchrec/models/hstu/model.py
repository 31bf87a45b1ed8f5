"""Tables and a ranker of candidates together: what the stream of sequences is trained with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import nn
from torchrec.modules.embedding_modules import EmbeddingCollection
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor

from dlrm_torchrec.models.hstu.tokens import Samples


class SequenceInputs(Protocol):
    """The fields of a batch that the model reads; see ``Samples`` for their shapes."""

    sparse_features: KeyedJaggedTensor  # features of events have an id for each token, those of context for each sample
    times: torch.Tensor
    actions: torch.Tensor
    lengths: torch.Tensor
    num_candidates: torch.Tensor


class SequenceRanker(nn.Module):
    """Logits (C, labels) that ``score`` computes from the unpooled rows of all ids of a batch."""

    def __init__(self, tables: EmbeddingCollection, score: nn.Module) -> None:
        super().__init__()
        self.tables = tables
        self.score = score

    def forward(self, batch: SequenceInputs) -> torch.Tensor:
        """Logits of all candidates, sample after sample."""
        rows: Mapping[str, JaggedTensor] = self.tables(batch.sparse_features)
        samples = Samples(batch.times, batch.actions, batch.lengths, batch.num_candidates)
        logits: torch.Tensor = self.score(rows, samples)
        return logits
