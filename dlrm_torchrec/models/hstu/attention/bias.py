"""What the distance of two events in places and in time adds to their attention score (arXiv 2402.17152, section 3)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

TIME_BUCKETS = 128  # more than 2**62 seconds need
_HALF_OCTAVES = 22  # bits of a float32 after those that tell 2**k from 1.5 * 2**k
_ONE = 0x3F800000 >> _HALF_OCTAVES  # the bucket of a float32 1.0, before it becomes bucket 1


def time_buckets(differences: torch.Tensor) -> torch.Tensor:
    """Buckets of whole seconds: 0 for at most 0, then two for each doubling: 1, 2, 3, 4-5, 6-7, 8-11, 12-15, ...

    >>> time_buckets(torch.tensor([-5, 0, 1, 2, 3, 4, 5, 6, 8, 3600])).tolist()
    [0, 0, 1, 3, 4, 5, 5, 6, 7, 24]
    """
    # The leading bits of a floating-point number are its logarithm, rounded down to half octaves.
    bits = differences.to(torch.float32, copy=True).view(torch.int32)
    return bits.bitwise_right_shift_(_HALF_OCTAVES).sub_(_ONE - 1).clamp_(min=0)


class BiasTables(NamedTuple):
    """The numbers that a layer learns for distances, and the times that differences are taken of."""

    places: torch.Tensor  # (most places + 1,)
    times: torch.Tensor  # (TIME_BUCKETS,)
    query_times: torch.Tensor  # (tokens,) int64 seconds, when each token asks
    key_times: torch.Tensor  # (tokens,) int64 seconds, when each token happened


class RelativeBias(nn.Module):
    """One number for each distance in places, up to ``most_places``, and one for each bucket of time differences.

    All heads share them, as in the authors' published code. Distances beyond the last have the last one's number.
    """

    def __init__(self, most_places: int, device: torch.device | None = None) -> None:
        super().__init__()
        self.places = nn.Parameter(torch.empty(most_places + 1, device=device))
        self.times = nn.Parameter(torch.empty(TIME_BUCKETS, device=device))
        nn.init.normal_(self.places, std=0.02)
        nn.init.normal_(self.times, std=0.02)

    def forward(self, query_times: torch.Tensor, key_times: torch.Tensor) -> BiasTables:
        """The tables together with the times of a batch."""
        return BiasTables(self.places, self.times, query_times, key_times)
