"""Chooses the TorchRec training pipeline for a world."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.train_pipeline import (
    PrefetchTrainPipelineSparseDist,
    TrainPipelineBase,
    TrainPipelineSparseDist,
)
from torchrec.optim.keyed import CombinedOptimizer

from dlrm_torchrec.sharding.caches import cached_kernels, has_cached_tables, set_aside_prefetched
from dlrm_torchrec.train.timing.step_times import TimedPipeline, Timing
from dlrm_torchrec.train.world import World


def train_pipeline(
    model: DistributedModelParallel, optimizer: CombinedOptimizer, world: World, timing: Timing | None = None
) -> RanksPipeline | CachePipeline | SingleRankPipeline | TimedPipeline:
    """``TrainPipelineSparseDist``, which overlaps the next batch's input_dist with this batch's training.

    A single rank exchanges no ids, so it gets a pipeline without that stage (a fifth faster on CPU). Where the plan
    caches tables, rows of the next batch are fetched into the caches beside the training, on a single rank, too. With
    ``timing``, some steps are trained part by part and timed.
    """
    kind = RanksPipeline if world.size > 1 else SingleRankPipeline
    if has_cached_tables(model.plan):
        kind = CachePipeline
    pipeline = kind(model, optimizer, world.device)
    return pipeline if timing is None else TimedPipeline(pipeline, model, optimizer, world, timing=timing)


@contextmanager
def between_streams(pipeline: Any) -> Iterator[nn.Module]:
    """The model with its own forward; afterwards ``pipeline`` takes another stream than the one that has ended."""
    yield pipeline.detach()
    pipeline.reset()
    pipeline.attach()


class SingleRankPipeline(TrainPipelineBase):
    """``TrainPipelineBase`` with the methods of ``TrainPipelineSparseDist`` that are called around an evaluation."""

    def __init__(self, model: nn.Module, optimizer: CombinedOptimizer, device: torch.device) -> None:
        super().__init__(model, optimizer, device)
        self.model = model

    def detach(self) -> nn.Module:
        """The model, unchanged."""
        return self.model

    def attach(self) -> None:
        """Continue training; there is nothing to restore."""


class RanksPipeline(TrainPipelineSparseDist):
    """``TrainPipelineSparseDist`` that keeps the ids in flight between ``detach`` and ``attach``.

    TorchRec's sends those of the next batch again and does not wait for them, so tables of single ids would not know
    how many vectors each rank gets.
    """

    def attach(self, model: nn.Module | None = None, sparse_dist: bool = False) -> None:  # noqa: FBT001, FBT002  # TorchRec's
        """Continue training."""
        super().attach(model, sparse_dist)


class CachePipeline(PrefetchTrainPipelineSparseDist):
    """``PrefetchTrainPipelineSparseDist`` whose model may look up other batches between ``detach`` and ``attach``.

    TorchRec's would take the rows that it has prefetched for those of the first such batch.
    """

    def __init__(self, model: nn.Module, optimizer: CombinedOptimizer, device: torch.device) -> None:
        super().__init__(model, optimizer, device, pipeline_postproc=False)  # as TrainPipelineSparseDist
        self._put_back: list[Callable[[], None]] = []

    def detach(self) -> nn.Module:
        """The model with its own forward."""
        model: nn.Module = super().detach()
        self._put_back += [set_aside_prefetched(kernel) for kernel in cached_kernels(model)]
        return model

    def attach(self, *args: Any, **kwargs: Any) -> None:
        """Continue training."""
        while self._put_back:
            self._put_back.pop()()
        super().attach(*args, **kwargs)
