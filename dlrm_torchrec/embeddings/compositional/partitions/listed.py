"""Listed classes of several partitions in one array of each type, which kernels read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray


class ListedCodes:
    """``short`` has all int16 codes and ``long`` all int32 ones; nothing is copied if they follow each other already.

    Numbers of places count through ``short``, then through ``long``.
    """

    def __init__(self, codes: Sequence[torch.Tensor | None]) -> None:
        distinct = {id(each): each for each in codes if each is not None}
        self._listed = [
            each for dtype in (torch.int16, torch.int32) for each in distinct.values() if each.dtype is dtype
        ]
        self.short: NDArray[np.int16] = _joined([each for each in self._listed if each.dtype is torch.int16], np.int16)
        self.long: NDArray[np.int32] = _joined([each for each in self._listed if each.dtype is torch.int32], np.int32)
        self._on: dict[torch.device, list[torch.Tensor]] = {}

    def on(self, device: torch.device) -> list[torch.Tensor]:
        """``short`` and ``long`` on a device; they are copied there once."""
        if device not in self._on:
            self._on[device] = [torch.as_tensor(codes, device=device) for codes in (self.short, self.long)]
        return self._on[device]

    def begin(self, codes: torch.Tensor | None) -> int:
        """The place of the code of id 0; -1 for None."""
        if codes is None:
            return -1
        number = next(number for number, each in enumerate(self._listed) if each is codes)
        return sum(len(each) for each in self._listed[:number])


def listed_or(
    classes: torch.Tensor, ids: torch.Tensor, *, begin: torch.Tensor, codes: list[torch.Tensor]
) -> torch.Tensor:
    """The class (n,) of each id (n,) where its codes ``begin`` at a place, and otherwise what ``classes`` has.

    ``codes`` are the short and the long ones. Also in TorchScript, which served tables need.
    """
    short, long = codes[0], codes[1]
    if short.numel() > 0:
        listed = (begin >= 0) & (begin < short.numel())
        classes = torch.where(listed, short[torch.where(listed, begin + ids, 0)].long(), classes)
    if long.numel() > 0:
        listed = begin >= short.numel()
        classes = torch.where(listed, long[torch.where(listed, begin - short.numel() + ids, 0)].long(), classes)
    return classes


def _joined(codes: Sequence[torch.Tensor], dtype: type) -> NDArray:  # type: ignore[type-arg]  # int16 or int32
    if not codes:
        return np.empty(0, dtype)
    first, size = codes[0], sum(map(len, codes))
    places = [each.data_ptr() for each in codes]
    follow = all(place + each.nbytes == after for place, each, after in zip(places, codes, places[1:], strict=False))
    if follow and len({each.untyped_storage().data_ptr() for each in codes}) == 1:
        return first.as_strided((size,), (1,)).numpy()
    return np.concatenate([each.numpy() for each in codes])
