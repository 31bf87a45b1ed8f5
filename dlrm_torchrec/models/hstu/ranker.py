"""HSTU that ranks candidates by what a user did before: the model of MLPerf's dlrm_v4_hstu, at any size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.functional import dropout

from dlrm_torchrec.models.hstu.attention.layout import make_layout, sent
from dlrm_torchrec.models.hstu.candidates import CandidateRanker
from dlrm_torchrec.models.hstu.chunks import Rows
from dlrm_torchrec.models.hstu.config import HSTUConfig
from dlrm_torchrec.models.hstu.costs import activation_bytes
from dlrm_torchrec.models.hstu.layer import HSTULayers
from dlrm_torchrec.models.hstu.places import after_context, to_first_candidates
from dlrm_torchrec.models.hstu.tokens import Samples

MINUTE_S = 60


class Encoding(nn.Module):
    """Tokens plus a row for their place and one for their age.

    The place of an event counts back from the candidates, which all have the same; context has the first rows. The age
    of an event is the time until the sample's first candidate; its bucket is the root of its minutes. Context has the
    last bucket, after those of events.

    The variant ``mlperf`` multiplies tokens by the root of their dim first, as the published code does. Rows are then
    small beside tokens, and learn slowly; the variant ``paper`` leaves that out.
    """

    def __init__(self, config: HSTUConfig, num_context: int, device: torch.device | None = None) -> None:
        super().__init__()
        self.num_context = num_context
        self.factor = config.dim**0.5 if config.variant == "mlperf" else 1.0
        self.places = nn.Embedding(max(config.positions, num_context + 1), config.dim, device=device)
        self.ages = nn.Embedding(config.time_buckets + 1, config.dim, device=device)
        for table in (self.places, self.ages):
            limit = table.num_embeddings**-0.5
            nn.init.uniform_(table.weight, -limit, limit)

    def events(self, tokens: torch.Tensor, to_candidates: torch.Tensor, ages_s: torch.Tensor) -> torch.Tensor:
        """Encoded tokens (T, dim); ``to_candidates`` (T,) counts places, ``ages_s`` (T,) seconds."""
        places = (self.num_context + to_candidates).clamp(max=self.places.num_embeddings - 1)
        minutes = ages_s.clamp(min=0).to(torch.float32) / MINUTE_S
        buckets = minutes.sqrt().long().clamp(max=self.ages.num_embeddings - 2)
        result: torch.Tensor = tokens * self.factor + self.places(places) + self.ages(buckets)
        return result

    def context(self, tokens: torch.Tensor) -> torch.Tensor:
        """Encoded tokens (samples, context, dim)."""
        rows = self.places.weight[: self.num_context] + self.ages.weight[-1]
        result: torch.Tensor = tokens * self.factor + rows
        return result


class Sequences(NamedTuple):
    """Context and events of each sample one after the other, N tokens."""

    tokens: torch.Tensor  # (N, dim)
    times: torch.Tensor  # (N,) those of context are those of the sample's first event
    indices: torch.Tensor  # (T,) of the events and candidates


class HSTURanker(CandidateRanker):
    """A sequence is the sample's context, the events of its history, and its candidates.

    A candidate sees all of the history and never another candidate.
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
        self.encoding = Encoding(config, len(context), device)
        self.layers = HSTULayers(config, device)

    def activation_bytes(self, num_samples: int) -> int:
        return activation_bytes(self.config, self.most_work(num_samples))

    def served(self) -> nn.Module:
        return ServedHSTU(self)

    def score(self, rows: Rows, samples: Samples) -> torch.Tensor:
        histories = samples.lengths - samples.num_candidates
        there = samples.on_device()
        times, which = there.times, sent(samples.candidates(), there.times.device)
        owners = there.owners()
        to_candidates = (there.lengths - there.num_candidates)[owners] - there.places(owners)
        first_candidates = there.lengths.cumsum(0) - there.num_candidates
        ages = times[first_candidates.clamp(max=max(0, len(times) - 1))[owners]] - times

        tokens = self.encoding.events(self.contents(rows, samples.actions), to_candidates.clamp(min=0), ages)
        indices = torch.arange(len(tokens), device=tokens.device)
        if self.context is not None:
            context = self.encoding.context(self.context(rows))
            real = samples.lengths > 0
            tokens, times, indices = _put_before(context, tokens, times, sent(samples.lengths[real], times.device))
            histories = histories + real * context.shape[1]
        layout = make_layout(histories, samples.num_candidates, times.device)
        tokens = self.layers(dropout(tokens, self.config.input_dropout, self.training), layout, times, times)
        logits: torch.Tensor = self.head(tokens[indices[which]], samples.times[which], rows, which)
        return logits


class ServedHSTU(nn.Module):
    """``HSTURanker.score`` without gradients, in a form that ``torchrec.fx`` traces and TorchScript compiles."""

    def __init__(self, trained: HSTURanker) -> None:
        super().__init__()
        self.trained, self.num_context = trained, len(trained.context_features)
        self.layers = nn.ModuleList(trained.layers.served())

    def forward(self, rows: Rows, samples: Samples) -> torch.Tensor:
        trained, (times, actions, lengths, num_candidates) = self.trained, samples
        visible, owners = lengths - num_candidates, torch.repeat_interleave(lengths)
        to_candidates = to_first_candidates(owners, lengths, visible)
        which = (to_candidates <= 0).nonzero().squeeze(1)
        ages = times[(lengths.cumsum(0) - num_candidates)[owners]] - times
        tokens = trained.encoding.events(trained.contents(rows, actions), to_candidates.clamp(min=0), ages)
        asked, happened = which, times
        if trained.context is not None:
            context = trained.encoding.context(trained.context(rows))
            order, indices = after_context(owners, lengths, self.num_context)
            tokens = torch.cat([context.flatten(0, 1), tokens])[order]
            first = times[lengths.cumsum(0) - lengths]
            happened = torch.cat([first.repeat_interleave(self.num_context), times])[order]
            visible, asked = visible + self.num_context, indices[which]
        for layer in self.layers:
            tokens = layer(tokens, happened, happened, visible=visible, candidates=num_candidates)
        logits: torch.Tensor = trained.head(tokens[asked], times[which], rows, which)
        return logits


def _put_before(context: torch.Tensor, tokens: torch.Tensor, times: torch.Tensor, lengths: torch.Tensor) -> Sequences:
    """Puts context (users, features, dim) before the tokens (T, dim) of each user, who has ``lengths`` of them."""
    users, features, _ = context.shape
    owners = torch.arange(users, device=tokens.device).repeat_interleave(lengths, output_size=len(tokens))
    order, indices = after_context(owners, lengths, features)
    first = times[lengths.cumsum(0) - lengths]
    return Sequences(
        torch.cat([context.flatten(0, 1), tokens])[order],
        torch.cat([first.repeat_interleave(features), times])[order],
        indices,
    )
