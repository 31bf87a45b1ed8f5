"""HSTU that tells the next item of a user among all items (arXiv 2402.17152, section 4.1: MovieLens-1M)."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import dropout, normalize

from dlrm_torchrec.models.hstu.attention.layout import make_layout
from dlrm_torchrec.models.hstu.config import HSTUConfig
from dlrm_torchrec.models.hstu.layer import HSTULayers
from dlrm_torchrec.models.hstu.places import to_first_candidates
from dlrm_torchrec.models.hstu.tokens import Samples

NORM_EPS = 1e-6


class HSTUNextItem(nn.Module):
    """States (T, dim) of length 1 after each event, whose products with items of length 1 rank the items.

    A token is the item's row times the root of its dim, plus a row for its place from the start, as in the authors'
    published code. A state knows its own event and those before it; with times, it also knows when the next one comes.
    """

    def __init__(self, config: HSTUConfig, *, temperature: float = 0.05, device: torch.device | None = None) -> None:
        super().__init__()
        self.config, self.temperature = config, temperature
        self.scores = Cosines(temperature)
        self.places = nn.Embedding(config.positions, config.dim, device=device)
        nn.init.trunc_normal_(self.places.weight, std=config.dim**-0.5)
        self.layers = HSTULayers(config, device)

    def forward(self, items: torch.Tensor, times: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """States after each event.

        The bias of times is that of the wait between an event and the one that is to be told, as in the published
        code: when it comes is known when it is asked for.

        Args:
            items: (T, dim) rows of the items of all sequences
            times: (T,) int64 seconds
            lengths: (B,) events of each sequence, on the host
        """
        none = torch.zeros_like(lengths)
        samples = Samples(times, torch.zeros_like(times), lengths, none).on_device()
        owners = samples.owners()
        places = samples.places(owners)
        is_last = places == samples.lengths[owners] - 1
        asked = torch.where(is_last, times, times.roll(-1))
        rows = self.places(places.clamp(max=self.places.num_embeddings - 1))
        tokens = dropout(items * items.shape[1] ** 0.5 + rows, self.config.input_dropout, self.training)
        states = self.layers(tokens, make_layout(lengths, none, times.device), asked, times)
        return normalize(states.float(), dim=1, eps=NORM_EPS)

    def served(self) -> nn.Module:
        """The states after whole histories alone, in a form that ``torchrec.fx`` traces and TorchScript compiles."""
        return ServedStates(self)


class Cosines(nn.Module):
    """Logits (states, items) of states (states, dim) of length 1 and rows (items, dim): cosines over a temperature.

    Rows may have more numbers than states, which are left out.
    """

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.temperature, self.eps = temperature, NORM_EPS  # TorchScript knows no constants of files

    def forward(self, states: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        own = items[:, : states.size(1)].to(states.dtype)
        return states @ normalize(own, dim=1, eps=self.eps).T / self.temperature


class ServedStates(nn.Module):
    """The states of ``HSTUNextItem`` after the histories of samples, without gradients."""

    def __init__(self, trained: HSTUNextItem) -> None:
        super().__init__()
        self.trained = trained
        self.layers = nn.ModuleList(trained.layers.served())

    def forward(
        self, rows: torch.Tensor, times: torch.Tensor, lengths: torch.Tensor, num_candidates: torch.Tensor
    ) -> torch.Tensor:
        """States (B, dim) of length 1; ``num_candidates`` says how many tokens of each sample come after its history.

        Args:
            rows: (T, dim or more) rows of the items of all tokens; that of a token after the history changes nothing
            times: (T,) int64 seconds; that of the first token after a history says when the next item is asked for
            lengths: (B,) tokens of each sample
            num_candidates: (B,) those after the history, at least 1, before which there is at least 1
        """
        dim, places = self.trained.config.dim, self.trained.places
        owners, visible = torch.repeat_interleave(lengths), lengths - num_candidates
        place = visible[owners] - to_first_candidates(owners, lengths, visible)
        tokens = rows[:, :dim] * dim**0.5 + places(place.clamp(max=places.num_embeddings - 1))
        asked = times.roll(-1)  # wrong for the last token of a sample alone, whose state nothing reads
        for layer in self.layers:
            tokens = layer(tokens, asked, times, visible=lengths, candidates=torch.zeros_like(lengths))
        return normalize(tokens[lengths.cumsum(0) - num_candidates - 1], dim=1, eps=NORM_EPS)
