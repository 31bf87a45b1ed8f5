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
from dlrm_torchrec.embeddings.managed.waiting_room import Waiting


class _WithinBuckets(MCHEvictionPolicy):
    """Lets only ids of one bucket compete for its rows; TorchRec lets all ids of a rank compete for all its rows."""

    buckets = 1

    def _compute_selected_eviction_and_replacement_indices(
        self, pivot: int, eviction_scores: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        rows, waiting = (_ordinals(part).view(self.buckets, -1) for part in eviction_scores.tensor_split([pivot]))
        most, size = waiting.size(1), rows.size(1)
        first = torch.arange(self.buckets, device=rows.device)[:, None]
        # the last row is the shared one; of rows with equal scores, the last one goes
        keys = rows[:, :-1] * size - torch.arange(size - 1, device=rows.device)
        _, leave = torch.topk(keys, min(most, size - 1), dim=1, largest=False)
        score, come = torch.sort(waiting, dim=1, descending=True, stable=True)
        replaced = score[:, : leave.size(1)] > rows.gather(1, leave)
        evicted = (leave + first * size)[replaced]
        chosen = (come[:, : leave.size(1)] + first * most)[replaced]
        return evicted, chosen


def _ordinals(scores: torch.Tensor) -> torch.Tensor:
    """Numbers of at most 32 bits in the same order as scores, which are float32, or counts."""
    if scores.dtype != torch.float32:
        return scores.clamp(max=2**31 - 1)
    bits = scores.view(torch.int32)
    return (bits ^ (bits >> 31 & 0x7FFFFFFF)).long()


class _Lru(_WithinBuckets, LRU_EvictionPolicy):
    pass


class _Lfu(_WithinBuckets, LFU_EvictionPolicy):
    pass


class _DistanceLfu(_WithinBuckets, DistanceLFU_EvictionPolicy):
    pass


_POLICIES: Mapping[Policy, type[_WithinBuckets]] = {"lru": _Lru, "lfu": _Lfu, "distance": _DistanceLfu}


def replacements(
    policy: Policy, last_seen: torch.Tensor, counts: torch.Tensor, waiting: Waiting, *, now: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Numbers of rows, and of as many ids in ``waiting`` that replace theirs, by a policy of TorchRec.

    Of equal ids, one that has a row stays, or else the more frequent one goes first, then the one that came first.

    Args:
        policy: the policy
        last_seen: the step at which the id of each row (buckets, rows) was seen; 0 for an empty row
        counts: how often it was seen, likewise; any number for lru
        waiting: the ids that may get rows, at most one row less than each bucket has: its last row is never replaced
        now: the step
    """
    waiting_order = waiting.by_count()
    waiting = waiting.at(waiting_order)
    affected, own = torch.unique_consecutive(waiting.buckets, return_inverse=True)
    ranks = waiting.ranks()
    most = int(ranks.max()) + 1
    numbers, last, times = (ranks.new_zeros(len(affected), most) for _ in range(3))
    place = (own, ranks)
    numbers[place], last[place], times[place] = waiting_order, waiting.last_seen.long(), waiting.counts.long()

    chooser = _POLICIES[policy]()
    chooser.buckets = len(affected)
    rows = {"last_access_iter": last_seen[affected].flatten().long(), "counts": counts[affected].flatten().long()}
    infos = chooser.metadata_info
    evicted, chosen = chooser.update_metadata_and_generate_eviction_scores(
        now,
        len(rows["counts"]),
        torch.arange(times.numel(), device=times.device),
        times.flatten(),
        torch.zeros_like(times.flatten(), dtype=torch.bool),  # none of them has a row
        times.new_empty(0),
        {info.metadata_name: rows[info.metadata_name] for info in infos if info.is_mch_metadata},
        {info.metadata_name: last.flatten() for info in infos if info.is_history_metadata},  # only last_access_iter
    )
    size = last_seen.size(1)
    return affected[evicted // size] * size + evicted % size, numbers.flatten()[chosen]
