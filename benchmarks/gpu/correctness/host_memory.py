"""Tables in the host's memory, with and without a cache on the device: losses, weights, the recipe's pipeline."""

from __future__ import annotations

from dlrm_torchrec.train.config import OptimizerKind
from dlrm_torchrec.train.pipeline import train_pipeline
from dlrm_torchrec.train.world import join_world

from ..proof import Proof
from ..shapes import pinned, small
from ..training import Reference, Trainer, apart, furthest, small_batches
from .losses import MOST, config

KERNELS = ("fused_uvm", "fused_uvm_caching")
OPTIMIZERS: tuple[OptimizerKind, ...] = ("sgd", "adagrad", "rowwise_adagrad", "adam")


def prove(proof: Proof) -> None:
    """On a CPU, whose tables lie in the host's memory anyway, the kernel is the usual one."""
    recipe, base = small()
    for kernel in KERNELS:
        for kind in OPTIMIZERS if proof.cuda else OPTIMIZERS[:1]:
            cfg = config(base, kind)
            name = f"{kernel}, {kind}"
            with proof.guarded(f"losses: {name}"), join_world(seed=0) as world:
                trainer = Trainer(recipe, cfg, world, kernel=kernel)
                reference = Reference(recipe, cfg, trainer.weights())
                batches = small_batches(cfg)
                expected = [float(reference.step(batch)) for batch in batches]
                pipeline = train_pipeline(trainer.model, trainer.optimizer, world)
                stream = iter(pinned(batches))
                found = [float(pipeline.progress(stream)[0]) for _ in batches]
                proof.correct(f"losses: {name}", apart(found, expected), at_most=MOST, unit="relative")
                difference = furthest(trainer.weights(), reference.weights())
                proof.correct(f"weights: {name}", difference, at_most=1e-3, unit="absolute")
