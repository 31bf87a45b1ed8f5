"""TorchRec's eviction policies, among the ids of each bucket."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torchrec.modules.mc_modules import (
    DistanceLFU_EvictionPolicy,
    LFU_EvictionPolicy,
    LRU_EvictionPolicy,
    MCHEvictionPolicy,
)

from dlrm_torchrec.embeddings.config import Policy


class _WithinBuckets(MCHEvictionPolicy):
    """Lets only ids of one bucket compete for its rows; TorchRec lets all ids of a rank compete for all its rows."""

    buckets = 1

    def _compute_selected_eviction_and_replacement_indices(
        self, pivot: int, eviction_scores: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        rows, waiting = (part.view(self.buckets, -1) for part in eviction_scores.tensor_split([pivot]))
        limits = torch.finfo if rows.is_floating_point() else torch.iinfo
        rows[:, -1] = limits(rows.dtype).max  # the shared row
        order = torch.argsort(torch.cat([rows, waiting], 1), dim=1, descending=True, stable=True)
        size, first = rows.size(1), torch.arange(self.buckets, device=rows.device)[:, None]
        kept, left = order[:, :size], order[:, size:]
        evicted = (left + first * size)[left < size]
        chosen = (kept - size + first * waiting.size(1))[kept >= size]
        return evicted, chosen


class _Lru(_WithinBuckets, LRU_EvictionPolicy):
    pass


class _Lfu(_WithinBuckets, LFU_EvictionPolicy):
    pass


class _DistanceLfu(_WithinBuckets, DistanceLFU_EvictionPolicy):
    pass


_POLICIES: Mapping[Policy, type[_WithinBuckets]] = {"lru": _Lru, "lfu": _Lfu, "distance": _DistanceLfu}


def replacements(
    policy: Policy, rows: Mapping[str, torch.Tensor], waiting: Mapping[str, torch.Tensor], *, buckets: int, now: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Numbers of rows, and of as many waiting ids that replace theirs, by a policy of TorchRec.

    ``rows`` and ``waiting`` have the ``last_access_iter`` and the ``counts`` of rows and of waiting ids, one bucket
    after another; those of empty rows and places are 0. The last row of a bucket is never replaced. Of equal ids, an
    earlier row stays, and an earlier waiting id comes first.
    """
    chooser = _POLICIES[policy]()
    chooser.buckets = buckets
    counts = waiting["counts"]
    infos = chooser.metadata_info
    found: tuple[torch.Tensor, torch.Tensor] = chooser.update_metadata_and_generate_eviction_scores(
        now,
        len(rows["last_access_iter"]),
        torch.arange(len(counts), device=counts.device),
        counts,
        torch.zeros_like(counts, dtype=torch.bool),  # none of them has a row
        torch.empty(0, dtype=torch.int64, device=counts.device),
        {info.metadata_name: rows[info.metadata_name].long() for info in infos if info.is_mch_metadata},
        {info.metadata_name: waiting[info.metadata_name].long() for info in infos if info.is_history_metadata},
    )
    return found
