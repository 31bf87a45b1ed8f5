"""Ids that are not in order of frequency, renumbered so that the most frequent come first."""

from __future__ import annotations

import torch

from dlrm_torchrec.embeddings.compositional.partitions.base import Digit, Partition


class Renumbered(Partition):
    """The classes that ``partition`` gives to the number of an id: its place in ``first_ids``, or their count plus x.

    A hashed feature's ids are in no order, so a hot_cold table of them needs the list of its frequent ids.
    """

    def __init__(self, partition: Partition, first_ids: torch.Tensor) -> None:
        """Raises ValueError unless ``first_ids`` (H,) are distinct ids, and ``partition`` is of H more than all ids."""
        self.num_ids = partition.num_ids - len(first_ids)
        ids = first_ids.detach().cpu().long().sort().values
        if not len(ids) or int(ids[0]) < 0 or int(ids[-1]) >= self.num_ids or bool((ids[1:] == ids[:-1]).any()):
            raise ValueError(
                f"frequent ids must be distinct, and ids in [0, {self.num_ids}): got {first_ids.tolist()[:5]}, ..., "
                f"{len(first_ids)} in all; count them again"
            )
        self.inner, self._first_ids = partition, ids

    @property
    def first_ids(self) -> torch.Tensor:
        return self._first_ids

    @property
    def classes(self) -> tuple[int, ...]:
        return self.inner.classes

    @property
    def shared_from(self) -> tuple[int, ...] | None:
        return self.inner.shared_from

    @property
    def digits(self) -> tuple[Digit, ...]:
        return self.inner.digits

    @property
    def codes(self) -> tuple[torch.Tensor | None, ...]:
        return self.inner.codes

    @property
    def listed_bytes(self) -> int:
        return self.inner.listed_bytes + self._first_ids.nbytes

    @property
    def own_rows(self) -> int:
        return self.inner.own_rows

    def of(self, ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.inner.of(renumbered(ids.long(), self._first_ids.to(ids.device)))


def renumbered(ids: torch.Tensor, first_ids: torch.Tensor) -> torch.Tensor:
    """The place of each id in the sorted ``first_ids`` (H,), or H plus the id."""
    place = torch.searchsorted(first_ids, ids)
    listed = first_ids[place.clamp(max=len(first_ids) - 1)] == ids
    return torch.where(listed, place, ids + len(first_ids))
