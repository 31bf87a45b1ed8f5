"""Times some steps of a run part by part, and writes the times and the tables' bytes to ``step_times.json``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torchrec.distributed.types import ShardedTensor
from torchrec.optim.keyed import CombinedOptimizer

from dlrm_torchrec.table_names import table_of
from dlrm_torchrec.train.checkpoints.state import run_tensors
from dlrm_torchrec.train.task import Output, RankingBatch
from dlrm_torchrec.train.timing.timed_step import TimedStep
from dlrm_torchrec.train.world import World

VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Which steps to time, and the function that receives the measurements."""

    first: int  # the first step to time
    last: int  # the last step to time
    step: int  # the steps that the run has already done
    plan: Any  # the run's plan, as JSON
    write: Callable[[dict[str, Any]], None]  # called with the same measurements on every rank


class TimedPipeline:
    """A pipeline that lets ``TimedStep`` train some steps; no batch is lost, repeated or out of order.

    The inner pipeline reads ahead. It therefore gets a stream that ends where timing begins, so it has no batch left
    by then.
    """

    def __init__(
        self, pipeline: Any, model: nn.Module, optimizer: CombinedOptimizer, world: World, *, timing: Timing
    ) -> None:
        self._pipeline, self._model, self._optimizer, self._world = pipeline, model, optimizer, world
        self._timing, self._step = timing, timing.step
        self._timed_step = TimedStep(model, optimizer, world)
        self._untimed: Iterator[RankingBatch] | None = None  # the rest of the stream before timing
        self._batch_size = 0
        self._found: list[dict[str, float]] = []

    def detach(self) -> nn.Module:
        """The model with its own forward."""
        model: nn.Module = self._pipeline.detach()
        return model

    def attach(self) -> None:
        """Continue training."""
        self._pipeline.attach()

    def reset(self) -> None:
        """Go on with another stream, after all batches of the one before."""
        self._untimed = None
        self._pipeline.reset()

    def progress(self, batches: Iterator[RankingBatch]) -> Output:
        """Train one step, and return the model's output without the loss to run backward on."""
        self._step += 1
        if self._timing.first <= self._step <= self._timing.last:
            return self._timed(batches)
        if self._step < self._timing.first:
            self._untimed = self._untimed or islice(batches, self._timing.first - self._step)
            batches = self._untimed
        output: Output = self._pipeline.progress(batches)
        return output

    def _timed(self, batches: Iterator[RankingBatch]) -> Output:
        if not self._found:  # put the inner pipeline back to its initial state
            self._pipeline.detach()
            self._pipeline.reset()
            self._pipeline.attach()
        output, rows, milliseconds = self._timed_step.run(batches)
        self._batch_size = max(self._batch_size, rows)
        self._found.append(milliseconds)
        if self._step == self._timing.last:
            self._timing.write(self._report())
        return output

    def _report(self) -> dict[str, Any]:
        """Medians over the timed steps for every rank, and the facts of the run."""
        weight_bytes, optimizer_bytes = held_bytes(self._model, self._optimizer)
        cuda = self._world.device.type == "cuda"
        mine = {
            "milliseconds": {part: median(step[part] for step in self._found) for part in self._found[0]},
            "weight_bytes": weight_bytes,
            "optimizer_bytes": optimizer_bytes,
            "peak_device_bytes": torch.cuda.max_memory_allocated(self._world.device) if cuda else None,
        }
        ranks: list[dict[str, Any]] = [{}] * self._world.size
        dist.all_gather_object(ranks, mine, group=self._world.control)
        return {
            "version": VERSION,
            "device": torch.cuda.get_device_name(self._world.device) if cuda else "cpu",
            "world_size": self._world.size,
            "batch_size": self._batch_size,
            "steps": [self._step - len(self._found) + 1, self._step],
            "plan": self._timing.plan,
            "ranks": ranks,
        }


def held_bytes(model: nn.Module, optimizer: CombinedOptimizer) -> tuple[int, int]:
    """Bytes that this rank has allocated for the tables' weights, and for their optimizer state.

    Replicated tables are included; step counts of optimizers are not.
    """
    tensors = run_tensors(model, optimizer)
    return _allocated(tensors["model"]), _allocated(tensors["optimizer"])


def _allocated(tensors: dict[str, Any]) -> int:
    """Bytes of the distinct storages of the tables' tensors."""
    storages = {}
    for name, tensor in tensors.items():
        if table_of(name):
            sharded = isinstance(tensor, ShardedTensor)
            for local in [shard.tensor for shard in tensor.local_shards()] if sharded else [tensor]:
                storages[local.untyped_storage().data_ptr()] = local.untyped_storage().nbytes()
    return sum(storages.values())
