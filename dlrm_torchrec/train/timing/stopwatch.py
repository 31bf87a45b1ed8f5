"""A stopwatch that splits the time of a training step into parts that do not overlap."""

from __future__ import annotations

import time

import torch
import torch.distributed as dist

from dlrm_torchrec.train.world import World

PARTS = (
    "batch",  # reading the batch and moving it to the device
    "input_dist",
    "lookup",
    "output_dist",
    "dense_forward",  # includes the loss
    "dense_backward",
    "dense_all_reduce",  # the all-reduce of dense gradients
    "output_dist_backward",  # includes the all-reduce of replicated tables' gradients
    "lookup_backward",  # includes the update of tables that are not replicated
    "tables_optimizer",  # the update of replicated tables
    "dense_optimizer",
    "waiting",  # the wait for slower ranks before collectives
)


class Stopwatch:
    """Times one step: one part runs at a time and gets all the time until the next ``switch``.

    On a GPU every switch waits for the device, so that a part gets exactly the time of what it launched.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._part = "batch"
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self._begin = self._lap = self._now()

    def switch(self, part: str) -> str:
        """Start ``part``, and return the part that ran until now."""
        now = self._now()
        self._seconds[self._part] += now - self._lap
        before, self._part, self._lap = self._part, part, now
        return before

    def meet(self, part: str) -> str:
        """``switch`` after all ranks have arrived, so that ``part`` does not include the wait for slower ranks."""
        before = self.switch("waiting")
        dist.barrier(self._world.control)
        self.switch(part)
        return before

    def milliseconds(self) -> dict[str, float]:
        """Milliseconds of every part until now, and of the whole ``step``, which is measured separately."""
        self.switch(self._part)
        milliseconds = {part: 1e3 * seconds for part, seconds in self._seconds.items()}
        return {**milliseconds, "step": 1e3 * (self._now() - self._begin)}

    def _now(self) -> float:
        if self._world.device.type == "cuda":
            torch.cuda.synchronize(self._world.device)
        return time.perf_counter()
