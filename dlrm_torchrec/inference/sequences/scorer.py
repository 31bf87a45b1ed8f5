"""A trained model of histories as one function of tensors, which checks ids and returns probabilities."""

from typing import Any, NamedTuple, cast

import torch
from torch import nn

from dlrm_torchrec.inference.scoring import UNSEEN
from dlrm_torchrec.inference.tables.ids import ServedIdTables
from dlrm_torchrec.schema import DatasetSpec


class Samples(NamedTuple):
    """B samples with T tokens, which are the events of a history and then its candidates, C in all."""

    times: torch.Tensor  # (T,) int64, seconds
    actions: torch.Tensor  # (T,) int64, from 1 on; 0 for candidates
    lengths: torch.Tensor  # (B,) int64, tokens of each sample
    num_candidates: torch.Tensor  # (B,) int64, at least 1


class SequenceScorer(nn.Module):
    """Probabilities of candidates; ids may be out of range."""

    ids: torch.Tensor
    replacement: torch.Tensor
    counted: torch.Tensor

    def __init__(self, model: nn.Module, spec: DatasetSpec) -> None:
        """``model`` has ``ServedIdTables`` as its ``tables``, and in ``score`` a module that can be ``served``.

        Raises ValueError for another ``score``.
        """
        super().__init__()
        assert spec.history is not None
        served = getattr(model.score, "served", None)
        if served is None:
            raise ValueError(
                f"a model of histories must score candidates to be served: got {type(model.score).__name__}, which has "
                "no method 'served'; train one that does"
            )
        self.lookup, self.ranker = cast(ServedIdTables, model.tables).lookup, served()
        self.keys, self.num_labels = [feature.name for feature in spec.sparse], len(spec.labels)
        kinds = [
            0 if name in spec.history.events else 1 if name in spec.history.cross_names else 2 for name in self.keys
        ]
        self.register_buffer("counted", torch.tensor(kinds))
        self.register_buffer("ids", torch.tensor([feature.ids for feature in spec.sparse]))
        self.register_buffer("replacement", torch.tensor([UNSEEN.get(each.encoding, 0) for each in spec.sparse]))

    def forward(  # noqa: PLR0917  # programs have no keywords
        self,
        ids: torch.Tensor,
        times: torch.Tensor,
        actions: torch.Tensor,
        lengths: torch.Tensor,
        num_candidates: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Probabilities (C, L), and how many ids of each feature (F,) are outside its table and count as unseen.

        ``ids`` (N,) int64 holds the ids of all features, one feature after another: features of events have an id for
        each token, crosses one for each candidate, and features of users one for each sample. The other arguments are
        those of ``Samples``.
        """
        totals = torch.stack([lengths.sum(), num_candidates.sum(), torch.ones_like(lengths).sum()])
        counts = totals[self.counted]
        feature = torch.repeat_interleave(counts)
        outside = (ids < 0) | (ids >= self.ids[feature])
        unseen = torch.zeros_like(self.ids).index_add(0, feature, outside.long())
        rows = self.lookup(torch.where(outside, self.replacement[feature], ids), counts)
        named = {name: rows[place] for place, name in enumerate(self.keys)}
        logits = self.ranker(named, Samples(times, actions, lengths, num_candidates))
        return torch.sigmoid(logits.reshape(-1, self.num_labels)), unseen


def arguments(batch: Any) -> tuple[torch.Tensor, ...]:
    """What ``SequenceScorer`` takes of a ``SequenceBatch`` without padding."""
    return batch.sparse_features.values(), batch.times, batch.actions, batch.lengths, batch.num_candidates
