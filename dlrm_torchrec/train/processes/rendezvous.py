"""A store for the ranks of one attempt of a run, without the leftovers of earlier attempts."""

from __future__ import annotations

import json
import time
import uuid
from datetime import timedelta

import torch.distributed as dist


def attempt_store(store: dist.Store, rank: int, size: int, timeout: timedelta) -> dist.Store:
    """The part of ``store`` that belongs to this attempt, the same on all its ranks.

    torchelastic gives restarted ranks the store of the failed attempt, in which gloo finds the addresses of dead
    processes (torch 2.13). Rank 0 names the attempt. The other ranks may still read the name of the previous attempt,
    so they trust a name only when its list contains what they have just written. Raises TimeoutError.
    """
    mine = uuid.uuid4().hex
    if rank == 0:
        store.set("attempt", mine)
        others = [f"{mine}/{other}" for other in range(1, size)]
        if others:
            store.wait(others, timeout)
        store.set(f"{mine}/ranks", json.dumps([store.get(other).decode() for other in others]))
        return dist.PrefixStore(mine, store)
    deadline = time.monotonic() + timeout.total_seconds()
    while time.monotonic() < deadline:
        attempt = store.get("attempt").decode()
        store.set(f"{attempt}/{rank}", mine)
        ranks = f"{attempt}/ranks"
        if store.check([ranks]) and mine in json.loads(store.get(ranks)):
            return dist.PrefixStore(attempt, store)
        time.sleep(0.02)
    raise TimeoutError(f"rank 0 must answer rank {rank} within {timeout}: got no answer; look at the log of rank 0")
