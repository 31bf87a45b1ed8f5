"""Small networks of HSTU that are the same wherever they stand."""

from __future__ import annotations

import torch
from torch import nn


class SwishNorm(nn.Module):
    """x * sigmoid(norm(x)), as in the authors' published code."""

    def __init__(self, width: int, device: torch.device | None = None) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, device=device)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(self.norm(x))


def swish_mlp(widths: tuple[int, int, int], *, norm: bool, device: torch.device | None = None) -> nn.Sequential:
    """A linear layer, ``SwishNorm``, a linear layer and, with ``norm``, a norm; Glorot's initial weights."""
    given, hidden, result = widths
    last = [nn.LayerNorm(result, device=device)] if norm else []
    return nn.Sequential(
        glorot(nn.Linear(given, hidden, device=device)),
        SwishNorm(hidden, device),
        glorot(nn.Linear(hidden, result, device=device)),
        *last,
    )


def glorot(layer: nn.Linear) -> nn.Linear:
    """The layer with Glorot's uniform initial weights and zeros as constants."""
    nn.init.xavier_uniform_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
