"""Compiled dense parts: the losses of the CPU's, and the time of a step."""

from __future__ import annotations

from dlrm_torchrec.train.config import Speed
from dlrm_torchrec.train.world import join_world

from ..proof import Proof
from ..shapes import kaggle, random_batches, repeated, small
from ..training import Trainer
from .losses import compare, config


def prove(proof: Proof) -> None:
    recipe, base = small()
    compare(proof, "compiled dense parts", recipe, config(base, "sgd"), speed=("compile",))
    name = "step, compiled over not, kaggle-like in bf16"
    with proof.guarded(name, "speed"), join_world(seed=0) as world:
        recipe, cfg = kaggle(toy=proof.toy)
        batches = random_batches(cfg.shape, cfg.batch_size, count=4, device=proof.device)
        taken = []
        speeds: tuple[Speed, ...] = (("bf16",), ("bf16", "compile"))
        for speed in speeds:
            trainer = Trainer(recipe, cfg, world, speed=speed)
            steps = 2 if proof.toy else 50
            stream = repeated(batches, 2 * steps)
            taken.append(proof.milliseconds(trainer.steps, stream, steps, times=1) / steps)
        proof.measured(name, taken[1] / taken[0], unit="x", note=f"{taken[0]:.2f} ms not compiled")
