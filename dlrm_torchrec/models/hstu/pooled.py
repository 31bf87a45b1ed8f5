"""The floor that sequences have to beat: the same inputs and the same head, with the history as a bag of events."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.functional import dropout

from dlrm_torchrec.models.hstu.blocks import swish_mlp
from dlrm_torchrec.models.hstu.candidates import CandidateRanker
from dlrm_torchrec.models.hstu.chunks import Rows
from dlrm_torchrec.models.hstu.config import HSTUConfig
from dlrm_torchrec.models.hstu.tokens import Samples


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
        times, actions, lengths, num_candidates = samples
        histories = lengths - num_candidates
        owners = samples.owners()
        which = (samples.places(owners) >= histories[owners]).nonzero().squeeze(1)
        tokens = dropout(self.contents(rows, actions), self.config.input_dropout, self.training)
        candidates = tokens[which]

        counts = histories[owners[which]]  # events that each candidate pools
        asker = torch.arange(len(which), device=which.device).repeat_interleave(counts)
        starts = (lengths.cumsum(0) - lengths)[owners[which]]
        place = torch.arange(len(asker), device=which.device) - (counts.cumsum(0) - counts)[asker]
        event, candidate = tokens[starts[asker] + place], candidates[asker]
        weights = self.weight(torch.cat([candidate, event, candidate - event, candidate * event], dim=1))
        pooled = torch.zeros_like(candidates).index_add(0, asker, (weights * event).to(candidates.dtype))

        known = [candidates, pooled]
        if self.context is not None:
            real = lengths > 0
            of_sample = (real.cumsum(0) - 1)[owners[which]]
            known.append(self.context(rows).flatten(1)[of_sample])
        logits: torch.Tensor = self.head(self.user(torch.cat(known, dim=1)), times[which], rows, which)
        return logits
