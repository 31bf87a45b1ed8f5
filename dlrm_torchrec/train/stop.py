"""A stop on SIGTERM that all ranks agree on, so that they stop after the same step."""

from __future__ import annotations

import signal
import sys
from types import FrameType

import torch
import torch.distributed as dist

from dlrm_torchrec.train.world import World


class StopRequest:
    """Turns SIGTERM on any rank into a common decision of all ranks.

    An asynchronous all-reduce sends the flag while the next step runs, so asking takes no extra time.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._received = False
        self._flag = torch.zeros(1)
        self._work: dist.Work | None = None
        signal.signal(signal.SIGTERM, self._on_signal)

    def agreed(self) -> bool:
        """True on every rank one step after any rank got SIGTERM; call it once per step on all ranks."""
        self.settle()
        stop = bool(self._flag.item()) if self._world.size > 1 else self._received
        if stop and self._world.is_main:
            print("stopped by SIGTERM; run the same command again to resume", file=sys.stderr, flush=True)
        if not stop and self._world.size > 1:
            self._flag.fill_(float(self._received))
            self._work = dist.all_reduce(self._flag, dist.ReduceOp.MAX, self._world.control, async_op=True)
        return stop

    def settle(self) -> None:
        """Wait for the running all-reduce; call it before the process group is destroyed."""
        if self._work is not None:
            self._work.wait()
            self._work = None

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._received = True
