"""Chooses the TorchRec training pipeline for a world."""

from __future__ import annotations

import torch
from torch import nn
from torchrec.distributed.train_pipeline import TrainPipelineBase, TrainPipelineSparseDist
from torchrec.optim.keyed import CombinedOptimizer

from dlrm_torchrec.train.timing.step_times import TimedPipeline, Timing
from dlrm_torchrec.train.world import World


def train_pipeline(
    model: nn.Module, optimizer: CombinedOptimizer, world: World, timing: Timing | None = None
) -> TrainPipelineSparseDist | SingleRankPipeline | TimedPipeline:
    """``TrainPipelineSparseDist``, which overlaps the next batch's input_dist with this batch's training.

    A single rank exchanges no ids, so it gets a pipeline without that stage (a fifth faster on CPU). With ``timing``,
    some steps are trained part by part and timed.
    """
    kind = TrainPipelineSparseDist if world.size > 1 else SingleRankPipeline
    pipeline = kind(model, optimizer, world.device)
    return pipeline if timing is None else TimedPipeline(pipeline, model, optimizer, world, timing=timing)


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
