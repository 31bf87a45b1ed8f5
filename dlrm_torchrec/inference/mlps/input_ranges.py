"""Ranges of the inputs of layers, measured on real batches."""

from collections.abc import Collection, Iterable
from math import isfinite
from typing import Any

import torch
from torch import nn

from dlrm_torchrec.inference.mlps.linear import INPUT_LEVELS

# If the noise-to-signal ratio of quantised inputs exceeds this, every column gets its own scale. In the demo this
# happens only at the input of the top MLP, whose dot products have long tails: one scale for all columns costs AUC 5e-4
# there, and 1e-5 in other layers.
MAX_NOISE = 1e-3


class InputStatistics:
    """A forward pre-hook of a layer that records the extremes (K,) of its input's columns, and their mean square."""

    def __init__(self, columns: int) -> None:
        self.low = torch.zeros(columns)
        self.high = torch.zeros(columns)
        self.squares = 0.0
        self.rows = 0

    def __call__(self, _layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        features = inputs[0].detach()
        if len(features):
            low, high = features.aminmax(dim=0)
            self.low, self.high = self.low.minimum(low), self.high.maximum(high)
            self.squares += float(features.double().square().sum())
            self.rows += len(features)

    def column_scales(self) -> torch.Tensor | None:
        """The largest magnitude (K,) in every column, or None if one scale for all columns is precise enough.

        Uniform rounding with steps s adds noise of power s² / 12. Scales are at least the root mean square of all
        inputs, because finer steps gain nothing and a column that was almost always 0 in the calibration may hold
        larger values later.
        """
        step = float(self.high.max() - self.low.min()) / INPUT_LEVELS
        mean_square = self.squares / (self.rows * len(self.low))
        if step**2 / 12 <= MAX_NOISE * mean_square:
            return None
        return self.high.maximum(-self.low).clamp_min(mean_square**0.5)


def observe_inputs(
    model: nn.Module, layers: Collection[nn.Linear], batches: Iterable[tuple[Any, ...]]
) -> dict[nn.Linear, InputStatistics]:
    """Statistics of the inputs of each of ``layers``, collected while ``model`` runs on all ``batches``."""
    seen = {layer: InputStatistics(layer.in_features) for layer in layers}
    hooks = [layer.register_forward_pre_hook(statistics) for layer, statistics in seen.items()]
    try:
        with torch.no_grad():
            for batch in batches:
                model(*batch)
    finally:
        for hook in hooks:
            hook.remove()
    for layer, statistics in seen.items():
        if not statistics.rows or not isfinite(statistics.squares):
            found = "infinite numbers or nan" if statistics.rows else "no rows"
            raise ValueError(
                f"calibration must give every layer finite inputs: got {found} for {layer}; pass batches of real data"
            )
    return seen
