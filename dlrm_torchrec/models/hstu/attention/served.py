"""Attention for serving, without gradients, in a form that TorchScript compiles."""

import torch
from torch import nn
from torch.nn.functional import silu

from dlrm_torchrec.models.hstu.attention.bias import RelativeBias

BLOCK = 512  # queries that attend at once, so that memory is linear in the tokens of a sequence


def time_buckets(differences: torch.Tensor) -> torch.Tensor:
    """The same as ``bias.time_buckets``; TorchScript cannot read the bits of a number as another type."""
    mantissas, exponents = torch.frexp(differences.clamp(min=0).to(torch.float32))
    return (2 * exponents - 1 + (mantissas >= 0.75).int()).clamp(min=0)


class ServedAttention(nn.Module):
    """The result of ``silu_attention`` (N, heads, value dim), computed sequence by sequence.

    A sequence computes the same whatever else is in a batch, and a candidate the same beside any others, but for the
    rounding of sums.
    """

    places: torch.Tensor
    times: torch.Tensor

    def __init__(self, *, scale: float, divisor: float, bias: RelativeBias | None) -> None:
        super().__init__()
        self.scale, self.divisor, self.biased, self.block = float(scale), float(divisor), bias is not None, BLOCK
        self.register_buffer("places", torch.empty(0) if bias is None else bias.places.detach())
        self.register_buffer("times", torch.empty(0) if bias is None else bias.times.detach())

    def forward(
        self,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        *,
        query_times: torch.Tensor,
        key_times: torch.Tensor,
        visible: torch.Tensor,
        candidates: torch.Tensor,
    ) -> torch.Tensor:
        """The arguments are those of ``silu_attention``, ``RelativeBias`` and ``make_layout``."""
        asking, asked, given = queries.transpose(0, 1), keys.transpose(0, 1), values.transpose(0, 1)
        result = torch.zeros_like(given)
        numbers: list[int] = visible.tolist()
        others: list[int] = candidates.tolist()
        start = 0
        for seen, count in zip(numbers, others):  # noqa: B905  # TorchScript knows no strict
            end = start + seen + count
            for first in range(start, end, self.block):
                last = min(first + self.block, end)
                reach = start + min(seen, last - start)  # no query of the block sees more
                scores = torch.matmul(asking[:, first:last], asked[:, start:reach].transpose(1, 2)) * self.scale
                places = torch.arange(first - start, last - start, device=key_times.device).clamp(max=seen)
                distances = places.unsqueeze(1) - torch.arange(reach - start, device=key_times.device)
                if self.biased:
                    waits = query_times[first:last].unsqueeze(1) - key_times[start:reach]
                    near = distances.clamp(0, self.places.size(0) - 1)
                    scores = scores + (self.places[near] + self.times[time_buckets(waits)])
                weights = silu(scores).masked_fill(distances < 0, 0.0)
                result[:, first:last] = torch.matmul(weights, given[:, start:reach])
            candidate = start + seen
            own = (asking[:, candidate:end] * asked[:, candidate:end]).sum(-1) * self.scale
            if self.biased:
                own = own + (self.places[0] + self.times[0])
            result[:, candidate:end] += silu(own).unsqueeze(-1) * given[:, candidate:end]
            start = end
        return result.transpose(0, 1) / self.divisor
