"""One layer of HSTU, and layers one after the other."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.nn.functional import dropout, silu

from dlrm_torchrec.models.hstu.attention.bias import RelativeBias
from dlrm_torchrec.models.hstu.attention.layout import Layout
from dlrm_torchrec.models.hstu.attention.served import ServedAttention
from dlrm_torchrec.models.hstu.attention.silu import silu_attention
from dlrm_torchrec.models.hstu.blocks import glorot
from dlrm_torchrec.models.hstu.config import HSTUConfig

EPS = 1e-6  # of the norms inside a layer
Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]  # of queries, keys and values by head


class HSTULayer(nn.Module):
    """x + f2(norm(A V) * U) with A = SiLU(Q K' + bias) / n and U, V, Q, K = SiLU(f1(norm(x))).

    That is the variant ``paper`` (arXiv 2402.17152, equations 1 to 3). n is ``most_tokens``, the greatest length of a
    sequence, as in the published code of both variants: so what a user gets does not depend on the rest of the batch.

    The variant ``mlperf`` is that of dlrm_v4_hstu: only U goes through SiLU, Q K' is divided by the root of the key
    dim, there is no bias, and f2 gets U, A V and norm(A V) * U side by side and has no constant.
    """

    def __init__(self, config: HSTUConfig, device: torch.device | None = None) -> None:
        super().__init__()
        self.config = config
        keys, values = config.heads * config.key_dim, config.heads * config.value_dim
        self.widths = (values, values, keys, keys)
        paper = config.variant == "paper"
        self.scale = 1 if paper else config.key_dim**-0.5  # of the products of queries and keys
        self.norm_input = nn.LayerNorm(config.dim, eps=EPS, device=device)
        self.project = glorot(nn.Linear(config.dim, sum(self.widths), device=device))
        self.norm_attended = nn.LayerNorm(values, eps=EPS, device=device)
        self.output = glorot(nn.Linear(values if paper else 3 * values, config.dim, bias=paper, device=device))
        self.bias = RelativeBias(config.most_tokens, device) if paper else None

    def forward(
        self, x: torch.Tensor, layout: Layout, query_times: torch.Tensor, key_times: torch.Tensor
    ) -> torch.Tensor:
        """Tokens (tokens, dim) of tokens (tokens, dim).

        Args:
            x: the tokens of all sequences
            layout: who attends to whom
            query_times: (tokens,) int64 seconds, when each token asks
            key_times: (tokens,) int64 seconds, when each token happened
        """
        return self.around(
            x,
            partial(
                silu_attention,
                layout=layout,
                scale=self.scale,
                divisor=self.config.most_tokens,
                bias=self.bias(query_times, key_times) if self.bias is not None else None,
            ),
        )

    def around(self, x: torch.Tensor, attention: Attention) -> torch.Tensor:
        """Tokens (tokens, dim) of tokens (tokens, dim) that attend to each other by ``attention``."""
        config, paper = self.config, self.config.variant == "paper"
        projected = self.project(self.norm_input(x))
        u, v, q, k = (silu(projected) if paper else projected).split(self.widths, dim=1)
        u = u if paper else silu(u)
        attended = attention(
            q.unflatten(1, (config.heads, config.key_dim)),
            k.unflatten(1, (config.heads, config.key_dim)),
            v.unflatten(1, (config.heads, config.value_dim)),
        ).flatten(1)
        gated = self.norm_attended(attended) * u
        if not paper:
            gated = torch.cat([u, attended, gated], dim=1)
        result: torch.Tensor = x + self.output(dropout(gated, float(config.dropout), self.training))
        return result


class ServedLayer(nn.Module):
    """A layer without gradients, in a form that ``torchrec.fx`` traces."""

    def __init__(self, trained: HSTULayer) -> None:
        super().__init__()
        self.trained = trained
        self.attention = ServedAttention(scale=trained.scale, divisor=trained.config.most_tokens, bias=trained.bias)

    def forward(
        self,
        x: torch.Tensor,
        query_times: torch.Tensor,
        key_times: torch.Tensor,
        *,
        visible: torch.Tensor,
        candidates: torch.Tensor,
    ) -> torch.Tensor:
        """Tokens (tokens, dim) of tokens; the other arguments are those of ``ServedAttention``."""
        attention = partial(
            self.attention, query_times=query_times, key_times=key_times, visible=visible, candidates=candidates
        )
        return self.trained.around(x, attention)


class HSTULayers(nn.ModuleList):
    """All layers."""

    def __init__(self, config: HSTUConfig, device: torch.device | None = None) -> None:
        super().__init__(HSTULayer(config, device) for _ in range(config.layers))

    def forward(
        self, x: torch.Tensor, layout: Layout, query_times: torch.Tensor, key_times: torch.Tensor
    ) -> torch.Tensor:
        """Tokens (tokens, dim) of tokens; the arguments are those of ``HSTULayer``."""
        for layer in self:
            x = layer(x, layout, query_times, key_times)
        return x

    def served(self) -> list[ServedLayer]:
        """The layers for serving."""
        return [ServedLayer(layer) for layer in self if isinstance(layer, HSTULayer)]
