"""Node-local tables, whose averages are written into the tables after each step, also where these are cached.

One GPU is one node, so an average is over one table; it must change nothing.
"""

from __future__ import annotations

from typing import Any

import torch

from dlrm_torchrec.datasets.batch import Batch
from dlrm_torchrec.recipe import TrainingRecipe
from dlrm_torchrec.sharding.node_local import Nodes
from dlrm_torchrec.train.checkpoints.state import run_tensors
from dlrm_torchrec.train.world import World, join_world

from ..proof import Proof
from ..shapes import small
from ..training import Reference, Trainer, small_batches
from .losses import config, judge


def prove(proof: Proof) -> None:
    recipe, base = small()
    for kernel in ("fused", "fused_uvm_caching"):
        name = f"node-local tables, {kernel}"
        with proof.guarded(f"losses: {name}"), join_world(seed=0) as world:
            train(proof, name, recipe, config(base, "rowwise_adagrad"), world=world, kernel=kernel)


def train(proof: Proof, name: str, recipe: TrainingRecipe, cfg: Any, *, world: World, kernel: str) -> None:
    nodes = Nodes(world.rank, world.size, size=1, local_size=1, device=world.device)
    trainer = Trainer(recipe, cfg, world, kernel=kernel, nodes=nodes)

    def step(batch: Batch) -> torch.Tensor:
        loss = trainer.step(batch)
        nodes.average(run_tensors(trainer.model, trainer.optimizer))
        return loss

    reference = Reference(recipe, cfg, trainer.weights())
    judge(proof, name, trainer, reference, batches=small_batches(cfg), step=step)
    distance = nodes.distance(run_tensors(trainer.model, trainer.optimizer))["distance"]
    proof.correct(f"distance of one node from itself, {kernel}", distance)
