"""Recipes as a person starts them, with python or torchrun, by processes that have imported this library already.

Each process may be made to wait at a chosen place for the signal that a test sends it.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import pkgutil
import runpy
import signal
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from torch.distributed.elastic.multiprocessing.api import MultiprocessContext
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from tests.distributed import context

PAUSE_S = 0.5  # for which a process waits in its trap, so that a signal meets it there
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Trap:
    """A place where every rank pauses: before the ``nth`` call, from 1, of ``function``, which is module:name."""

    function: str
    nth: int = 1

    def set(self, mark: Path) -> None:
        """From now on, touch ``mark`` and pause there."""
        module, _, names = self.function.partition(":")
        *holders, name = names.split(".")
        owner: Any = pkgutil.resolve_name(f"{module}:{'.'.join(holders)}" if holders else module)
        original: Callable[..., Any] = getattr(owner, name)
        calls = itertools.count(1)

        def trapped(*args: Any, **options: Any) -> Any:
            if next(calls) == self.nth:
                mark.touch()
                time.sleep(PAUSE_S)
            return original(*args, **options)

        setattr(owner, name, trapped)


class Launched:
    """A command that runs. ``folder`` gets what it prints, and a file ``rank<number>.<process>`` for each rank.

    ``words`` are the script and its arguments; more ranks than one are started by torchrun's agent.
    """

    def __init__(
        self, words: Sequence[str], num_ranks: int, folder: Path, trap: Trap | None = None, *, max_restarts: int = 0
    ) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        self.process = context.Process(target=_main, args=(list(words), num_ranks, folder, trap, max_restarts))
        self.process.start()

    @property
    def launcher(self) -> int:
        """The number of the process that a person started."""
        assert self.process.pid is not None
        return self.process.pid

    def ranks(self) -> dict[int, int]:
        """The numbers of the ranks' processes that have started."""
        return {int(path.stem[4:]): int(path.suffix[1:]) for path in self.folder.glob("rank*.*")}

    def wait_for_start(self, timeout_s: float) -> None:
        """Return when a rank has started, or when the launcher has ended."""
        deadline = time.monotonic() + timeout_s
        while self.is_running() and not self.ranks():
            if time.monotonic() > deadline:
                raise TimeoutError(f"no rank of {self.folder} has started after {timeout_s} s\n{self.err()}")
            time.sleep(0.005)

    def is_running(self) -> bool:
        return self.process.exitcode is None

    def is_trapped(self) -> bool:
        """Whether a rank has come to the trap."""
        return (self.folder / "trapped").exists()

    def wait(self, timeout_s: float) -> int:
        """The exit code of the launcher."""
        self.process.join(timeout_s)
        if self.process.exitcode is None:
            raise TimeoutError(f"{self.folder} still running after {timeout_s} s\n{self.err()}")
        return self.process.exitcode

    def wait_for_ranks(self, timeout_s: float) -> None:
        """Return when no rank lives, as the launcher may have been killed before them."""
        deadline = time.monotonic() + timeout_s
        while left := [pid for pid in self.ranks().values() if is_running(pid)]:
            if time.monotonic() > deadline:
                raise TimeoutError(f"ranks {left} of {self.folder} outlive their launcher\n{self.err()}")
            time.sleep(0.02)

    def out(self) -> str:
        return (self.folder / "out").read_text()

    def err(self) -> str:
        return (self.folder / "err").read_text(errors="replace")

    def kill(self) -> None:
        """End whatever is left of it."""
        self.process.kill()
        self.process.join()
        for pid in self.ranks().values():
            if is_running(pid):
                os.kill(pid, signal.SIGKILL)


@contextmanager
def launched(*args: Any, **options: Any) -> Iterator[Launched]:
    """A ``Launched`` of which nothing outlives ``with``."""
    command = Launched(*args, **options)
    try:
        yield command
    finally:
        command.kill()


def is_running(pid: int) -> bool:
    """Whether a process lives; one that only waits to be collected does not."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def _main(words: list[str], num_ranks: int, folder: Path, trap: Trap | None, max_restarts: int) -> None:
    for name, descriptor in (("out", 1), ("err", 2)):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    if num_ranks == 1:
        _run(words, folder, trap)
        return
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=num_ranks, run_id=str(uuid.uuid4()), rdzv_backend="c10d",
        rdzv_endpoint="localhost:0", max_restarts=max_restarts, start_method="fork",
    )  # fmt: skip
    # Ranks that are functions wait until the agent has heard what they return, and for ever when it is gone.
    start: Callable[[MultiprocessContext], None] = MultiprocessContext.start

    def start_without_waiting(ranks: MultiprocessContext) -> None:
        ranks._worker_finished_event.set()
        start(ranks)

    with mock.patch.object(MultiprocessContext, "start", start_without_waiting):
        elastic_launch(config, _run)(words, folder, trap)


def _run(words: list[str], folder: Path, trap: Trap | None) -> None:
    """Be the process of one rank, as if it had been started anew."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, 0)  # torch has it for functions, but not for scripts
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if trap is not None:
        trap.set(folder / "trapped")
    sys.argv = words
    sys.path.insert(0, str(Path(words[0]).parent))
    (folder / f"rank{os.environ.get('RANK', 0)}.{os.getpid()}").touch()
    runpy.run_path(words[0], run_name="__main__")
