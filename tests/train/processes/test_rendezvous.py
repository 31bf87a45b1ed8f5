"""Ranks of a restarted run find each other, not what a failed attempt left in their store."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch.distributed as dist

from dlrm_torchrec.train.processes.rendezvous import attempt_store

TIMEOUT = timedelta(seconds=20)


def meet(store: dist.Store, delays_s: list[float]) -> list[str]:
    """For each rank, the address that rank 0 wrote to the part of the store that the rank got."""

    def rank_main(rank: int) -> str:
        time.sleep(delays_s[rank])
        part = attempt_store(store, rank, len(delays_s), TIMEOUT)
        if rank == 0:
            assert not part.check(["address"])  # nobody has been here before
            part.set("address", f"of rank 0 after {delays_s}")
        return part.get("address").decode()

    with ThreadPoolExecutor(len(delays_s)) as pool:
        return list(pool.map(rank_main, range(len(delays_s))))


@pytest.mark.parametrize("late", [0, 1, 2])
def test_every_attempt_is_clean_whoever_comes_last(late: int) -> None:
    store = dist.HashStore()
    store.set_timeout(TIMEOUT)
    delays_s = [0.0, 0.0, 0.0]
    assert len(set(meet(store, delays_s))) == 1
    delays_s[late] = 0.3
    for _ in range(3):
        assert meet(store, delays_s) == [f"of rank 0 after {delays_s}"] * 3


def test_a_failed_attempt_of_some_ranks_does_no_harm() -> None:
    store = dist.HashStore()
    store.set_timeout(TIMEOUT)
    with pytest.raises(dist.DistStoreError):
        attempt_store(store, 0, 2, timedelta(seconds=0.2))  # rank 1 died before it came
    assert meet(store, [0.3, 0.0]) == ["of rank 0 after [0.3, 0.0]"] * 2


def test_a_rank_that_nobody_meets_says_so() -> None:
    store = dist.HashStore()
    store.set("attempt", "an earlier one")
    with pytest.raises(TimeoutError, match=r"rank 0 must answer rank 1 within 0:00:00\.2\d*: got no answer; look"):
        attempt_store(store, 1, 2, timedelta(seconds=0.2))
