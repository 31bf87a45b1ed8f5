"""Several outputs of one DLRM: a shared bottom, and a top MLP for each label."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy

import torch
from torch import nn
from torchrec.models.dlrm import DLRM


def add_heads(model: DLRM, count: int) -> None:
    """Give ``model`` ``count`` top MLPs side by side, in place, so that its outputs are (B, ``count``).

    Tables, bottom MLP and interaction are shared (Caruana, Machine Learning 28, 1997). Every head has the widths of the
    first and weights of its own. A model with one head stays as it is.
    """
    first = model.over_arch.model
    others = [deepcopy(first) for _ in range(count - 1)]
    for head in others:
        for layer in _linear_layers(head):
            layer.reset_parameters()
    if others:
        model.over_arch.model = SideBySide([first, *others])


def start_at(model: DLRM, means: Sequence[float]) -> None:
    """Set the last bias of each head to the mean of its label: numbers to predict may be far from 0."""
    top = model.over_arch.model
    heads = list(top) if isinstance(top, SideBySide) else [top]
    with torch.no_grad():
        for head, mean in zip(heads, means, strict=True):
            _linear_layers(head)[-1].bias.fill_(mean)


class SideBySide(nn.ModuleList):
    """Concatenates the outputs (B, 1) of its modules, all of one input, to (B, count)."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return torch.cat([head(inputs) for head in self], dim=1)


def _linear_layers(module: nn.Module) -> list[nn.Linear]:
    return [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
