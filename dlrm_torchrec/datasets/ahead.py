"""Work that a thread does before its result is needed."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

BATCHES_AHEAD = 2  # of training

T = TypeVar("T")


def ahead(items: Generator[T, None, None], depth: int) -> Generator[T, None, None]:
    """The items; a thread makes up to ``depth`` of them while the caller uses the one before.

    An error in ``items`` is raised when the caller asks for that item. The thread ends, and ``items`` is closed, after
    the last item, after an error, or when this generator is closed or no longer referenced.
    """
    thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ahead")
    try:
        made = deque(thread.submit(next, items, None) for _ in range(depth))
        while (item := made.popleft().result()) is not None:
            made.append(thread.submit(next, items, None))
            yield item
    finally:
        thread.shutdown(cancel_futures=True)
        items.close()
