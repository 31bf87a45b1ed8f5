"""What is made of the token of a candidate: a logit for each label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import pi

import torch
from torch import nn

from dlrm_torchrec.models.hstu.blocks import glorot, swish_mlp
from dlrm_torchrec.models.hstu.config import HSTUConfig

HOUR_S, HOURS, DAYS = 3600, 24, 7


def calendar(times: torch.Tensor) -> torch.Tensor:
    """Hour of the day and day of the week, as cosine and sine of an angle each: (..., 4) of seconds (...,)."""
    hours = times.div(HOUR_S, rounding_mode="floor")
    days = hours.div(HOURS, rounding_mode="floor")
    angles = [hours.remainder(HOURS) * (2 * pi / HOURS), days.remainder(DAYS) * (2 * pi / DAYS)]
    return torch.stack([wave for angle in angles for wave in (angle.cos(), angle.sin())], dim=-1)


class CandidateHead(nn.Module):
    """Logits (C, labels): an MLP of user * item, elementwise.

    The user is the candidate's token with hour and day appended, through a linear layer and a norm. The item is an MLP
    of the candidate's rows side by side. That is as in the published code of dlrm_v4_hstu.
    """

    def __init__(
        self,
        config: HSTUConfig,
        events: Sequence[str],
        *,
        table_dim: int,
        num_labels: int = 1,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        self.events = tuple(events)
        dim, hidden = config.dim, config.hidden
        self.user = nn.Sequential(glorot(nn.Linear(dim + 4, dim, device=device)), nn.LayerNorm(dim, device=device))
        self.item = swish_mlp((table_dim * len(events), hidden, dim), norm=True, device=device)
        self.logits = swish_mlp((dim, hidden, num_labels), norm=False, device=device)

    def forward(
        self, tokens: torch.Tensor, times: torch.Tensor, rows: Mapping[str, torch.Tensor], which: torch.Tensor
    ) -> torch.Tensor:
        """Logits of candidates.

        Args:
            tokens: (C, dim)
            times: (C,) int64 seconds
            rows: of all tokens
            which: (C,) the candidates among all tokens
        """
        user = self.user(torch.cat([tokens, calendar(times).to(tokens.dtype)], dim=1))
        item = self.item(torch.cat([rows[name][which] for name in self.events], dim=1))
        result: torch.Tensor = self.logits(user * item)
        return result
