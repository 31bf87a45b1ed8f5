"""Several outputs of one DLRM: a shared bottom, and a top MLP for each label."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy

import torch
from torch import nn
from torchrec.models.dlrm import DLRM


def add_heads(model: DLRM, first_outputs: Sequence[float]) -> None:
    """Give ``model`` a top MLP for each label, in place, so that its outputs are (B, labels).

    Tables, bottom MLP and interaction are shared (Caruana, Machine Learning 28, 1997). Every head has the widths of the
    first and weights of its own; the last bias is shifted by the label's number in ``first_outputs``, because numbers
    to predict may be far from 0. A model of one label keeps its names and its random numbers.
    """
    first = model.over_arch.model
    others = [deepcopy(first) for _ in first_outputs[1:]]
    for layer in (layer for head in others for layer in _linear_layers(head)):
        layer.reset_parameters()
    with torch.no_grad():
        for head, shift in zip([first, *others], first_outputs, strict=True):
            _linear_layers(head)[-1].bias.add_(shift)
    if others:
        model.over_arch.model = SideBySide([first, *others])


class SideBySide(nn.ModuleList):
    """Concatenates the outputs (B, 1) of its modules, all of one input, to (B, count)."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return torch.cat([head(inputs) for head in self], dim=1)


def _linear_layers(module: nn.Module) -> list[nn.Linear]:
    return [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
