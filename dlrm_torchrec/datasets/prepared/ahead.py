"""Work done ahead of whoever needs its result, in a thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def ahead(items: Generator[T, None, None], depth: int) -> Generator[T, None, None]:
    """The items, up to ``depth`` of them made by a thread while the one before is in use.

    An error in ``items`` is raised where the item is asked for. The thread ends, and ``items`` is closed, with the last
    item, an error, or when this generator is closed or forgotten.
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
