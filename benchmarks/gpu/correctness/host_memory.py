"""Tables in the host's memory, with and without a cache on the device, trained by the recipe's pipeline."""

from __future__ import annotations

from typing import Any

import torch

from dlrm_torchrec.datasets.batch import Batch
from dlrm_torchrec.recipe import TrainingRecipe
from dlrm_torchrec.train.config import OptimizerKind
from dlrm_torchrec.train.pipeline import train_pipeline
from dlrm_torchrec.train.world import World, join_world

from ..proof import Proof
from ..shapes import pinned, small
from ..training import Reference, Trainer, small_batches
from .losses import config, judge

KERNELS = ("fused_uvm", "fused_uvm_caching")
OPTIMIZERS: tuple[OptimizerKind, ...] = ("sgd", "adagrad", "rowwise_adagrad", "adam")


def prove(proof: Proof) -> None:
    """On a CPU, whose tables lie in the host's memory anyway, the kernel is the usual one."""
    recipe, base = small()
    for kernel in KERNELS:
        for kind in OPTIMIZERS if proof.cuda else OPTIMIZERS[:1]:
            name = f"{kernel}, {kind}"
            with proof.guarded(f"losses: {name}"), join_world(seed=0) as world:
                train(proof, name, recipe, config(base, kind), world=world, kernel=kernel)


def train(proof: Proof, name: str, recipe: TrainingRecipe, cfg: Any, *, world: World, kernel: str) -> None:
    trainer, batches = Trainer(recipe, cfg, world, kernel=kernel), small_batches(cfg)
    pipeline, stream = train_pipeline(trainer.model, trainer.optimizer, world), iter(pinned(batches))

    def step(_: Batch) -> torch.Tensor:
        loss: torch.Tensor = pipeline.progress(stream)[0]
        return loss

    judge(proof, name, trainer, Reference(recipe, cfg, trainer.weights()), batches=batches, step=step)
