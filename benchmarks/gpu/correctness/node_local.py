"""Node-local tables, whose averages are written into the tables after each step, also where these are cached.

One GPU is one node, so an average is over one table; it must change nothing.
"""

from __future__ import annotations

from dlrm_torchrec.sharding.node_local import Nodes
from dlrm_torchrec.train.checkpoints.state import run_tensors
from dlrm_torchrec.train.world import join_world

from ..proof import Proof
from ..shapes import small
from ..training import Trainer, apart, reference_losses, small_batches
from .losses import MOST, config


def prove(proof: Proof) -> None:
    recipe, base = small()
    cfg = config(base, "rowwise_adagrad")
    for kernel in ("fused", "fused_uvm_caching"):
        name = f"losses: node-local tables, {kernel}"
        with proof.guarded(name), join_world(seed=0) as world:
            nodes = Nodes(world.rank, world.size, size=1, local_size=1, device=world.device)
            trainer = Trainer(recipe, cfg, world, kernel=kernel, nodes=nodes)
            expected = reference_losses(recipe, cfg, trainer.weights())
            found = []
            for batch in small_batches(cfg):
                found.append(float(trainer.step(batch.to(proof.device))))
                nodes.average(run_tensors(trainer.model, trainer.optimizer))
            proof.correct(name, apart(found, expected), at_most=MOST, unit="relative")
            distance = nodes.distance(run_tensors(trainer.model, trainer.optimizer))["distance"]
            proof.correct(f"distance of one node: {kernel}", distance, at_most=0.0)
