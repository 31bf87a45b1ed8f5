"""A stop on SIGTERM, SIGINT or SIGHUP that all ranks agree on, so that they stop after the same step."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, NoReturn, Protocol

import torch
import torch.distributed as dist

from dlrm_torchrec.terminal import stopped
from dlrm_torchrec.train.processes.lock import mark_stopping
from dlrm_torchrec.train.processes.printing import expect_readers, outlive_readers
from dlrm_torchrec.train.world import World

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
TWICE_S = (
    1.0  # the least time between two Ctrl-C of a person; a launcher may pass one on that the terminal sent as well
)
_WAIT_S = 1.0  # between two looks at whether all ranks have verified their files


class Files(Protocol):
    """Files that are compared with their checksums; see ``dlrm_torchrec.datasets.prepared.verification``."""

    def fault(self) -> str: ...

    def wait(self, timeout_s: float) -> bool: ...

    def close(self) -> None: ...


class StopRequest:
    """Turns a signal on any rank into a common decision of all ranks, and a fault of a file into an error of all.

    An asynchronous all-reduce sends the flags while the next step runs, so asking takes no extra time. A second SIGINT
    ends the process at once. The signal handlers are restored when the run ends; outside of the main thread, which
    alone may set them, there are none.

    Args:
        world: the ranks
        overdue: whether the run should be saved; asked on rank 0 once per step
        files: what the run reads; a run neither goes on nor ends well when one of them is not what it was
        verify: wait until all files are verified, before the first step
    """

    def __init__(
        self,
        world: World,
        overdue: Callable[[], bool] | None = None,
        files: Files | None = None,
        *,
        verify: bool = False,
    ) -> None:
        stopped.by = 0
        self.overdue = False  # whether to save after this step; the same on all ranks
        self._world, self._ask, self._files = world, overdue, files
        self._received = 0  # the signal that this process got
        self._stop = 0  # the signal that all ranks have heard of
        self._interrupted_s = -1.0
        self._told = False
        self._flags = torch.zeros(3)
        self._work: dist.Work | None = None
        self._before: dict[signal.Signals, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) != signal.SIG_IGN:  # nohup, and a shell's background jobs, ignore some
                    self._before[number] = signal.signal(number, self._on_signal)
        world.at_end.push(self._leave)
        if verify:
            self._verify()

    def agreed(self) -> bool:
        """True on every rank one step after any rank got a signal; call it once per step on all ranks.

        Raises ValueError on every rank when a file is found damaged on any.
        """
        if self._world.size == 1:
            self._flags = self._own()
        self._hear()
        if not self._stop and self._world.size > 1:
            self._flags = self._own()
            self._work = dist.all_reduce(self._flags, dist.ReduceOp.MAX, self._world.control, async_op=True)
        return bool(self._stop)

    def settle(self) -> None:
        """Wait for the running all-reduce and, unless a signal stopped the run, until all files are verified.

        Call it after the last step and before the run is saved. Raises ValueError like ``agreed``.
        """
        self._hear()
        self._verify()

    def verify(self, files: Files) -> None:
        """Wait until ``files``, which the run reads from now on in place of others, are verified, or a signal comes.

        Raises ValueError like ``agreed``.
        """
        if self._files is not None:
            self._files.close()
        self._files = files
        self.settle()

    def end(self) -> None:
        """Restore the signal handlers and, after a stop, say so; call it when the run is saved, or never."""
        self._restore()
        if self._stop and self._world.is_main and not stopped.by:
            stopped.by = self._stop
            print(f"stopped by {_name(self._stop)}, and saved", file=sys.stderr, flush=True)

    def _own(self) -> torch.Tensor:
        """What this rank has to say. A save that is due in the coming step is not asked for again."""
        overdue = self._world.is_main and not self.overdue and self._ask is not None and self._ask()
        damaged = self._files is not None and bool(self._files.fault())
        return torch.tensor([self._received, overdue, damaged], dtype=torch.float32)

    def _hear(self) -> None:
        """Take over what all ranks said together."""
        if self._work is not None:
            self._work.wait()
            self._work = None
        stop, self.overdue, damaged = int(self._flags[0]), bool(self._flags[1]), bool(self._flags[2])
        if damaged:
            self._fail()
        if stop and not self._stop:
            self._stop = stop
            outlive_readers()
            mark_stopping()
            if self._world.is_main and not self._told:
                print(f"{_name(stop)}: the run is saved, then it stops", file=sys.stderr, flush=True)

    def _verify(self) -> None:
        """Wait for the files of all ranks, unless a signal comes."""
        while self._files is not None and not self._stop:
            waiting = not self._files.wait(_WAIT_S)
            self._flags = self._own()
            self._flags[1] = waiting
            if self._world.size > 1:
                dist.all_reduce(self._flags, dist.ReduceOp.MAX, self._world.control)
            waiting = bool(self._flags[1])
            self._flags[1] = 0
            self._hear()
            if not waiting:
                break

    def _fail(self) -> NoReturn:
        assert self._files is not None
        faults: list[str] = [self._files.fault()] * self._world.size
        if self._world.size > 1:
            dist.all_gather_object(faults, faults[self._world.rank], self._world.control)
        raise ValueError(next(fault for fault in faults if fault))

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        first = not self._received
        if number == signal.SIGINT:
            if 0 <= self._interrupted_s < now - TWICE_S:
                self._end_at_once()
            if self._interrupted_s < 0:
                self._interrupted_s = now
        self._received = self._received or number
        outlive_readers()
        if first and self._world.is_main:
            self._told = True
            again = "; press Ctrl-C again to end at once, unsaved" if number == signal.SIGINT else ""
            _write(f"{_name(number)}: this step ends, the run is saved, then it stops{again}")

    def _end_at_once(self) -> None:
        if self._world.is_main:
            _write("ended by a second SIGINT, unsaved; the same command goes on from the last whole checkpoint")
        if hasattr(sys, "ps1"):  # a notebook or a Python prompt, which lives on
            self._restore()
            raise KeyboardInterrupt
        os._exit(128 + signal.SIGINT)

    def _leave(self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        if self._files is not None:
            self._files.close()
        if kind is None:
            self.end()
        else:
            self._restore()
        expect_readers()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._before = {}


def _name(number: int) -> str:
    return signal.Signals(number).name


def _write(text: str) -> None:
    """Write a line for people out of a signal handler, which may have interrupted a print."""
    try:
        os.write(2, f"\n{text}\n".encode() if os.isatty(2) else f"{text}\n".encode())
    except OSError:  # nobody reads it
        return
