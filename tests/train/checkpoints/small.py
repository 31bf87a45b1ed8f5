"""A run of a few small layers in a world of ranks, whose checkpoints take milliseconds."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper

from dlrm_torchrec.train.checkpoints.checkpoint import Checkpoints
from dlrm_torchrec.train.checkpoints.progress import Progress
from dlrm_torchrec.train.config import CheckpointConfig
from tests.distributed import here

IDENTITY = {"seed": 0}


class SmallRun:
    """Layers whose weights follow from the step, and the checkpoints in ``folder``."""

    def __init__(self, folder: str, **options: Any) -> None:
        self.said: list[str] = []
        self.model = nn.Sequential(*(nn.Linear(20, 30) for _ in range(4)))
        parameters = dict(self.model.named_parameters())
        self.optimizer = CombinedOptimizer([KeyedOptimizerWrapper(parameters, lambda each: torch.optim.SGD(each, 0.1))])
        config = CheckpointConfig(**{"keep": 9, **options})
        self.checkpoints = Checkpoints(folder, config, here(), say=self.said.append)

    def save(self, step: int, **progress: Any) -> None:
        for parameter, wanted in zip(self.model.parameters(), self._wanted(step), strict=True):
            parameter.data.copy_(wanted)
        reached = Progress(identity=IDENTITY, lanes=1, step=step, **progress)
        self.checkpoints.finish(self.model, self.optimizer, reached)

    def load(self) -> int:
        """The step of the checkpoint that was loaded, by its progress and by every weight; -1 if there is none."""
        progress = self.checkpoints.load(self.model, self.optimizer, IDENTITY)
        if progress is None:
            return -1
        for parameter, wanted in zip(self.model.parameters(), self._wanted(progress.step), strict=True):
            assert torch.equal(parameter, wanted)
        return progress.step

    def _wanted(self, step: int) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(step)
        return [torch.rand(parameter.shape, generator=generator) for parameter in self.model.parameters()]
