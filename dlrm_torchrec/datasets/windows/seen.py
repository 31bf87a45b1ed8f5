"""Which ids a run has met in its windows, so that the share of unseen ids of the next window is known."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numba import int64, uint8, uint64
from numpy.typing import NDArray

from dlrm_torchrec.compiled import compiled, read_only
from dlrm_torchrec.datasets.batch import Batch
from dlrm_torchrec.datasets.random.counter import word
from dlrm_torchrec.datasets.sequences.batch import SequenceBatch
from dlrm_torchrec.schema import DatasetSpec, SparseFeature

EXACT_IDS = 1 << 31  # the largest range with a bit for each id
FOLDED_BITS = 1 << 24  # for larger ranges, in which each id has two bits by its hash

_NONE = np.empty(0, np.int64)

Bits = NDArray[np.uint8]
Tensors = Callable[[Any, Any], dict[str, dict[str, Any]]]  # of a model and its optimizer
AnyBatch = TypeVar("AnyBatch", Batch, SequenceBatch)


class SeenIds:
    """One bit for each id of each feature: whether any row of a window held it.

    An id is unseen in a window if no row of an earlier window held it in the same feature. Every lookup of such an id
    counts, however often the window itself holds it. The id 1 of a vocabulary, which stands for all values that it
    lacks, always counts as unseen. Missing values count neither way.

    Ids of a range above 2^31 (managed ones) have two bits each, by their hash, in 2 MiB: an unseen id is taken for a
    seen one with a probability of 0.2 % after 400,000 distinct ids, and of 1.3 % after a million.
    """

    def __init__(self, spec: DatasetSpec, group: dist.ProcessGroup, *, beside: Tensors) -> None:
        """Nothing is seen yet; ``beside`` gives the other tensors of a checkpoint, see ``tensors``."""
        self._features, self._group, self._beside = spec.sparse, group, beside
        self._seen = {feature.name: torch.zeros(_num_bytes(feature), dtype=torch.uint8) for feature in spec.sparse}
        self._new = {name: bits.clone() for name, bits in self._seen.items()}
        self._tables = {feature: table.name for table in spec.tables(dim=1) for feature in table.features}
        self._counts = torch.zeros(2, dtype=torch.int64)  # lookups that are unseen, and all

    def tensors(self, model: Any, optimizer: Any) -> dict[str, dict[str, Any]]:
        """The bits, and what ``beside`` gives of a model and its optimizer."""
        return self._beside(model, optimizer) | {"seen": self._seen}

    def forget(self, fresh: Mapping[str, NDArray[np.int64]]) -> Mapping[str, NDArray[np.int64]]:
        """Ids that mean other values now are unseen again: those of the rows ``fresh`` by table, which are returned."""
        for feature in self._features:
            ids = fresh.get(self._tables[feature.name], _NONE)
            bits = self._seen[feature.name].numpy()
            np.bitwise_and.at(bits, ids >> 3, ~(1 << (ids & 7)).astype(np.uint8))
        return fresh

    def watch(self, batches: Iterator[AnyBatch]) -> Iterator[AnyBatch]:
        """The batches of a whole window, whose ids are counted, and become seen when ``end_window`` is called."""
        self._counts.zero_()
        for name, bits in self._seen.items():
            self._new[name].copy_(bits)
        for batch in batches:
            ids, ends = batch.sparse_features.values().numpy(), batch.sparse_features.offset_per_key()
            for feature, first, last in zip(self._features, ends[:-1], ends[1:], strict=True):
                seen, new = (bits[feature.name].numpy() for bits in (self._seen, self._new))
                self._counts += torch.tensor(_count(ids[first:last], feature, seen, new))
            yield batch

    def end_window(self) -> float:
        """The share of lookups of the watched window that were unseen, over all ranks; its ids are seen from now on."""
        dist.all_reduce(self._counts, group=self._group)
        for name, bits in self._new.items():
            dist.all_reduce(bits, dist.ReduceOp.BOR, group=self._group)
            self._seen[name].copy_(bits)
        unseen, lookups = self._counts.tolist()
        return float(unseen / max(1, lookups))


def _num_bytes(feature: SparseFeature) -> int:
    return -(-(feature.ids if feature.ids <= EXACT_IDS else FOLDED_BITS) // 8)


def _count(ids: NDArray[np.int64], feature: SparseFeature, seen: Bits, new: Bits) -> tuple[int, int]:
    """Unseen lookups, and all; the ids are marked in ``new``."""
    first = {"id": 0, "vocab": 2}.get(feature.encoding, 1)  # before it are missing values, and unseen ones
    folded = FOLDED_BITS if feature.ids > EXACT_IDS else 0
    unseen, lookups = _mark(ids, first, folded, seen, new)
    return int(unseen), int(lookups)


@compiled(read_only(int64), int64, int64, uint8[::1], uint8[::1])
def _mark(  # noqa: PLR0917  # numba's functions have no keywords
    ids: NDArray[np.int64], first: int, folded: int, seen: Bits, new: Bits
) -> Any:
    unseen, lookups = 0, 0
    for each in ids:
        if each < first:
            if first == 2 and each == 1:
                unseen += 1
                lookups += 1
            continue
        lookups += 1
        bits = word(uint64(each), uint64(0)) if folded else uint64(each)
        known = True
        for part in range(2 if folded else 1):
            place = (bits >> uint64(32 * part)) % uint64(folded) if folded else bits
            byte, mask = int64(place >> uint64(3)), uint8(1 << (place & uint64(7)))
            known = known and (seen[byte] & mask) != 0
            new[byte] |= mask
        unseen += not known
    return unseen, lookups
