"""Items made ahead in a thread: in order, not too many, errors where they are asked for, and an end in every case."""

import _thread
import signal
import threading
from collections.abc import Callable, Generator

import pytest

from dlrm_torchrec.datasets.ahead import ahead


class Source:
    """Counts up to ``count``, then ends or fails; knows how many it has made and whether it was closed."""

    def __init__(
        self, count: int = 10**9, error: Exception | None = None, made: Callable[[int], object] = lambda _: None
    ) -> None:
        self.count, self.error, self.on_item = count, error, made
        self.made, self.closed = 0, False
        self.threads: set[threading.Thread] = set()

    def __iter__(self) -> Generator[int, None, None]:
        try:
            while self.made < self.count:
                self.made += 1
                self.threads.add(threading.current_thread())
                self.on_item(self.made)
                yield self.made
            if self.error is not None:
                raise self.error
        finally:
            self.closed = True


def running() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]


@pytest.mark.parametrize("depth", [1, 2, 5])
@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_all_items_in_order_by_another_thread(count: int, depth: int) -> None:
    source = Source(count)
    assert list(ahead(iter(source), depth)) == list(range(1, count + 1))
    assert source.closed
    assert threading.main_thread() not in source.threads
    assert not running()


@pytest.mark.parametrize("depth", [1, 3])
def test_depth_items_are_made_ahead_and_no_more(depth: int) -> None:
    reached = threading.Semaphore(0)
    source = Source(made=lambda _: reached.release())
    items = ahead(iter(source), depth)
    assert source.made == 0
    for taken in range(1, 6):
        assert next(items) == taken
        for _ in range(depth + 1 if taken == 1 else 1):
            assert reached.acquire(timeout=60)
        assert source.made == taken + depth
    items.close()


@pytest.mark.parametrize("count", [0, 1, 4])
def test_an_error_is_raised_in_its_place(count: int) -> None:
    source = Source(count, ValueError("row 7 is bad"))
    items = ahead(iter(source), 2)
    assert [next(items) for _ in range(count)] == list(range(1, count + 1))
    with pytest.raises(ValueError, match="row 7 is bad"):
        next(items)
    assert list(items) == []
    assert not running()


@pytest.mark.parametrize("leave", [lambda items: items.close(), lambda _: None], ids=["closed", "forgotten"])
def test_leaving_ends_the_thread_and_the_source(leave: Callable[[Generator[int, None, None]], None]) -> None:
    source = Source()
    items = ahead(iter(source), 2)
    next(items)
    assert len(running()) == 1
    leave(items)
    del items
    assert source.closed
    assert not running()


def test_an_interruption_ends_the_thread() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    go_on = threading.Event()

    def interrupt(item: int) -> None:
        if item == 3:
            go_on.wait(0.2)  # until the main thread waits for it
            _thread.interrupt_main()
            go_on.wait(60)

    source = Source(made=interrupt)
    items = ahead(iter(source), 1)
    threading.Timer(0.6, go_on.set).start()
    with pytest.raises(KeyboardInterrupt):
        for _ in items:
            pass
    signal.signal(signal.SIGINT, before)
    assert source.closed
    assert not running()
