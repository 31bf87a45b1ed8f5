"""Features whose ids become rows, and the numbers of ids of which some come first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, NoReturn

import torch

from dlrm_torchrec.embeddings.compositional.bags import Bags
from dlrm_torchrec.embeddings.compositional.partitions.renumbered import renumbered


class Source(NamedTuple):
    """A feature whose ids must be in [0, ``num_ids``), with the names that an error gives."""

    num_ids: int
    feature: str
    table: str
    mean: bool = False  # whether an id counts as one over the number of ids of its bag
    first_ids: torch.Tensor | None = None  # those of its partition

    @property
    def num_numbers(self) -> int:
        """How many numbers ids have, which are more than the ids if some come first."""
        return self.num_ids + (0 if self.first_ids is None else len(self.first_ids))

    def check(self, ids: torch.Tensor) -> None:
        """Raises ValueError for an id outside of the range; a GPU asserts it instead, to avoid waiting."""
        good = (ids >= 0) & (ids < self.num_ids)
        if ids.device.type != "cpu":
            torch._assert_async(good.all())
        elif not good.all():
            self.refuse(int(ids[~good][0]))

    def refuse(self, value: int) -> NoReturn:
        """ValueError for an id outside of the range."""
        raise ValueError(
            f"ids of feature {self.feature!r} must be in [0, {self.num_ids}), the ids of table {self.table!r}: "
            f"got {value}; check how that column was prepared"
        )


class Renumbering:
    """Puts the numbers of ids in the place of ids of sources with first ids."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = list(sources)
        self._copies: dict[tuple[int, torch.device], torch.Tensor] = {}

    def __call__(self, bags: Bags) -> Bags:
        """The same bags; raises ValueError for an id outside of its range, which a GPU asserts instead."""
        counts = bags.per_feature or bags.lengths.view(len(self._sources), -1).sum(1).tolist()
        parts = list(bags.values.long().split(counts))
        for number, source in enumerate(self._sources):
            if source.first_ids is not None:
                ids = parts[number]
                source.check(ids)
                parts[number] = renumbered(ids, self._first_ids(number, source.first_ids, ids.device))
        return bags._replace(values=torch.cat(parts))

    def _first_ids(self, number: int, first_ids: torch.Tensor, device: torch.device) -> torch.Tensor:
        """The first ids of a source on a device; they are copied there once."""
        if (number, device) not in self._copies:
            self._copies[number, device] = first_ids.to(device)
        return self._copies[number, device]
