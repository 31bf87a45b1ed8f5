"""TorchRec's training pipelines: which one a world needs."""

from __future__ import annotations

from torch import nn
from torchrec.distributed.train_pipeline import TrainPipelineBase, TrainPipelineSparseDist
from torchrec.optim.keyed import CombinedOptimizer

from dlrm_torchrec.train.timing.step_times import TimedPipeline, Timing
from dlrm_torchrec.train.world import World


def train_pipeline(
    model: nn.Module, optimizer: CombinedOptimizer, world: World, timing: Timing | None = None
) -> TrainPipelineSparseDist | SingleRankPipeline | TimedPipeline:
    """``TrainPipelineSparseDist``, which overlaps the next batch's input_dist with this batch's training.

    A single rank has no one to wait for, and gets the pipeline without that stage (a fifth faster on CPU). The steps
    of ``timing``, if any, are trained part by part and timed.
    """
    kind = TrainPipelineSparseDist if world.size > 1 else SingleRankPipeline
    pipeline = kind(model, optimizer, world.device)
    return pipeline if timing is None else TimedPipeline(pipeline, model, optimizer, world, timing=timing)


class SingleRankPipeline(TrainPipelineBase):
    """``TrainPipelineBase`` with the calls around an evaluation that ``TrainPipelineSparseDist`` has."""

    def detach(self) -> nn.Module:
        """The model, as it is."""
        model: nn.Module = self._model
        return model

    def attach(self) -> None:
        """Go on training: there is nothing to restore."""
