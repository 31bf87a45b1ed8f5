"""The threads of a rank on CPU."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cache
from threading import Barrier

import torch


@cache
def thread_pool(threads: int) -> ThreadPoolExecutor:
    """A pool of ``threads`` threads; each runs torch's operators on one core."""
    started = Barrier(threads + 1)

    def start() -> None:
        torch.get_num_threads()  # the first call in a thread sets the process's number, also after what follows
        torch.set_num_threads(1)
        started.wait()

    pool = ThreadPoolExecutor(threads, thread_name_prefix="lookup", initializer=start)
    for _ in range(threads):
        pool.submit(int)
    started.wait()
    torch.set_num_threads(threads)  # `start` also changed the number for threads that torch has not seen yet
    return pool
