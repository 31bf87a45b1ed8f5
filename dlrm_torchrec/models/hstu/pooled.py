"""The floor that sequences have to beat: the same inputs and the same head, with the history as a bag of events."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.functional import dropout

from dlrm_torchrec.models.hstu.attention.layout import sent
from dlrm_torchrec.models.hstu.blocks import swish_mlp
from dlrm_torchrec.models.hstu.candidates import CandidateRanker
from dlrm_torchrec.models.hstu.chunks import Rows
from dlrm_torchrec.models.hstu.config import HSTUConfig
from dlrm_torchrec.models.hstu.costs import pooled_activation_bytes
from dlrm_torchrec.models.hstu.places import histories_of, to_first_candidates
from dlrm_torchrec.models.hstu.tokens import Samples


class Pairs(NamedTuple):
    """C candidates, and P pairs of a candidate and an event of its history."""

    which: torch.Tensor  # (C,) the candidates among all tokens
    users: torch.Tensor  # (C,) the sample of each among those that are real
    asker: torch.Tensor  # (P,) the candidate's number
    events: torch.Tensor  # (P,) the event among all tokens


class PooledRanker(CandidateRanker):
    """Each candidate pools the events of its history (DIN, arXiv 1706.06978).

    An MLP of the candidate's token c and an event's token e, [c ‖ e ‖ c - e ‖ c * e], gives the event's weight, and the
    history is the weighted sum of its events, without softmax as in DIN. It knows items and actions, but neither the
    order nor the times of events. A linear layer of c, the history and the context gives the user that the head gets.
    """

    def __init__(
        self,
        config: HSTUConfig,
        events: Sequence[str],
        context: Sequence[str],
        *,
        table_dim: int,
        num_actions: int,
        num_labels: int = 1,
        device: torch.device | None = None,
    ) -> None:
        """The arguments are those of ``CandidateRanker``."""
        sizes = {"table_dim": table_dim, "num_actions": num_actions, "num_labels": num_labels}
        super().__init__(config, events, context, **sizes, device=device)
        dim = config.dim
        self.weight = swish_mlp((4 * dim, config.hidden, 1), norm=False, device=device)
        self.user = nn.Linear((2 + len(context)) * dim, dim, device=device)

    def score(self, rows: Rows, samples: Samples) -> torch.Tensor:
        owners = torch.repeat_interleave(samples.num_candidates)
        asker, events = histories_of(owners, samples.lengths, samples.lengths - samples.num_candidates)
        users = ((samples.lengths > 0).cumsum(0) - 1)[owners]
        pairs = Pairs(samples.candidates(), users, asker, events)
        return self.of_pairs(rows, samples, Pairs(*(sent(each, samples.times.device) for each in pairs)))

    def of_pairs(self, rows: Rows, samples: Samples, pairs: Pairs) -> torch.Tensor:
        """Logits of candidates that pool events, each by its pairs with them."""
        which, users, asker, events = pairs
        tokens = dropout(self.contents(rows, samples.actions), self.config.input_dropout, self.training)
        candidates = tokens[which]
        event, candidate = tokens[events], candidates[asker]
        weights = self.weight(torch.cat([candidate, event, candidate - event, candidate * event], dim=1))
        pooled = torch.zeros_like(candidates).index_add(0, asker, (weights * event).to(candidates.dtype))

        known = [candidates, pooled]
        if self.context is not None:
            known.append(self.context(rows).flatten(1)[users])
        logits: torch.Tensor = self.head(self.user(torch.cat(known, dim=1)), samples.times[which], rows, which)
        return logits

    def activation_bytes(self, num_samples: int) -> int:
        return pooled_activation_bytes(self.config, self.most_work(num_samples))

    def served(self) -> nn.Module:
        return ServedPooled(self)


class ServedPooled(nn.Module):
    """``PooledRanker.score`` without gradients, in a form that ``torchrec.fx`` traces and TorchScript compiles."""

    def __init__(self, trained: PooledRanker) -> None:
        super().__init__()
        self.trained = trained

    def forward(self, rows: Rows, samples: Samples) -> torch.Tensor:
        visible, owners = samples.lengths - samples.num_candidates, torch.repeat_interleave(samples.lengths)
        which = (to_first_candidates(owners, samples.lengths, visible) <= 0).nonzero().squeeze(1)
        asker, events = histories_of(owners[which], samples.lengths, visible)
        return self.trained.of_pairs(rows, samples, Pairs(which, owners[which], asker, events))
