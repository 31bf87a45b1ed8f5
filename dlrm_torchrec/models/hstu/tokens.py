"""The tokens of events and candidates: what happened, and to what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import nn
from torchrec.sparse.jagged_tensor import JaggedTensor

from dlrm_torchrec.models.hstu.attention.layout import sent
from dlrm_torchrec.models.hstu.blocks import glorot, swish_mlp
from dlrm_torchrec.models.hstu.config import HSTUConfig


class Samples(NamedTuple):
    """B samples with T tokens, the history of each and then its candidates, C in all; samples of padding have none.

    Where times and actions are on a GPU, the numbers of tokens should be on the host, because shapes follow from them.
    """

    times: torch.Tensor  # (T,) int64, seconds
    actions: torch.Tensor  # (T,) int64, from 1 on; 0 for candidates, whose action is to be predicted
    lengths: torch.Tensor  # (B,) tokens of each sample
    num_candidates: torch.Tensor  # (B,)

    def on_device(self) -> Samples:
        """The same with the numbers of tokens where times and actions are."""
        device = self.times.device
        return self._replace(lengths=sent(self.lengths, device), num_candidates=sent(self.num_candidates, device))

    def candidates(self) -> torch.Tensor:
        """The tokens that are candidates, (C,), where the numbers of tokens are."""
        owners = torch.repeat_interleave(self.num_candidates)
        events_before = (self.lengths - self.num_candidates).cumsum(0)
        return events_before[owners] + torch.arange(len(owners), device=owners.device)

    def owners(self) -> torch.Tensor:
        """The sample of each token, (T,)."""
        samples = torch.arange(len(self.lengths), device=self.lengths.device)
        return samples.repeat_interleave(self.lengths, output_size=len(self.times))

    def places(self, owners: torch.Tensor) -> torch.Tensor:
        """The place of each token in its sample, from 0 on, (T,)."""
        starts = self.lengths.cumsum(0) - self.lengths
        return torch.arange(len(owners), device=owners.device) - starts[owners]


class Contents(nn.Module):
    """Tokens (T, dim): the sum of an MLP of the item, one of all other features of the event, and one of the action.

    That is as in the published code of dlrm_v4_hstu. There, an event may have several actions; here it has one.
    """

    def __init__(
        self,
        config: HSTUConfig,
        events: Sequence[str],
        *,
        table_dim: int,
        num_actions: int,
        device: torch.device | None = None,
    ) -> None:
        """A module for rows of tables.

        Args:
            config: the sizes
            events: the features of an event, the item first
            table_dim: numbers of a table's row
            num_actions: actions that an event may have
            device: of the parameters
        """
        super().__init__()
        self.item, *others = events
        self.others = tuple(others)
        hidden, dim = config.hidden, config.dim
        self.of_item = swish_mlp((table_dim, hidden, dim), norm=True, device=device)
        self.of_others = swish_mlp((table_dim * len(others), hidden, dim), norm=True, device=device) if others else None
        self.actions = nn.Embedding(1 + num_actions, config.action_dim, device=device)
        nn.init.normal_(self.actions.weight, std=0.1)
        self.of_action = swish_mlp((config.action_dim, hidden, dim), norm=True, device=device)

    def forward(self, rows: Mapping[str, torch.Tensor], actions: torch.Tensor) -> torch.Tensor:
        """Tokens of rows with T values for each feature, and of actions (T,)."""
        tokens: torch.Tensor = self.of_item(rows[self.item]) + self.of_action(self.actions(actions))
        if self.of_others is not None:
            tokens = tokens + self.of_others(torch.cat([rows[name] for name in self.others], dim=1))
        return tokens


class Context(nn.Module):
    """Tokens (real samples, features, dim) of what is known of a sample as a whole: a linear layer for each feature."""

    def __init__(
        self, config: HSTUConfig, features: Sequence[str], *, table_dim: int, device: torch.device | None = None
    ) -> None:
        super().__init__()
        self.features = tuple(features)
        self.linear = nn.ModuleList(glorot(nn.Linear(table_dim, config.dim, device=device)) for _ in features)

    def forward(self, rows: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Tokens of rows with one value for each real sample."""
        pairs = zip(self.features, self.linear, strict=True)
        return torch.stack([layer(rows[name]) for name, layer in pairs], dim=1)


def values_of(
    rows: Mapping[str, JaggedTensor], samples: Samples, events: Sequence[str], context: Sequence[str]
) -> dict[str, torch.Tensor]:
    """The rows of features of events, (T, dim), and of features of context, (real samples, dim).

    Raises ValueError when a feature has another number of rows.
    """
    values = {name: rows[name].values() for name in (*events, *context)}
    num_samples, num_tokens = int((samples.lengths > 0).sum()), len(samples.times)
    for name, found in values.items():
        wanted, of = (num_tokens, "token") if name in events else (num_samples, "sample")
        if len(found) != wanted:
            raise ValueError(
                f"feature {name!r} must have one id for each {of}: got {len(found)} ids for {wanted} {of}s; a cross of "
                "candidates can be context only where samples have one candidate"
            )
    return values
