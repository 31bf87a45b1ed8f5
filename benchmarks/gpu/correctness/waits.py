"""A training step in which the host never waits for the device, with every storage and optimizer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from dlrm_torchrec.train.pipeline import train_pipeline
from dlrm_torchrec.train.world import join_world

from ..proof import Proof
from ..shapes import full_batch, pinned, repeated, small
from ..training import Trainer
from .losses import RATES, STORAGES, config

WARM_UP = 3


@contextmanager
def no_waits(device: torch.device) -> Iterator[None]:
    """Inside ``with``, a wait for the device is an error; a CPU is never waited for."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.synchronize(device)
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def prove(proof: Proof) -> None:
    recipe, base = small()
    cases = {storage: config(base, "rowwise_adagrad", tables) for storage, tables in STORAGES.items()}
    cases |= {f"plain, {kind}": config(base, kind) for kind in RATES if proof.cuda or kind != "adam"}
    note = "" if proof.cuda else "a CPU is never waited for"
    for case, cfg in list(cases.items())[:: 4 if proof.toy else 1]:
        name = f"no wait in a step: {case}"
        with proof.guarded(name), join_world(seed=0) as world:
            trainer = Trainer(recipe, cfg, world)
            batches = [full_batch(cfg.shape, cfg.batch_size, seed).to(proof.device) for seed in range(2 * WARM_UP)]
            for batch in batches[:WARM_UP]:
                trainer.step(batch)
            with no_waits(proof.device):
                for batch in batches[WARM_UP:]:
                    trainer.step(batch)
            proof.correct(name, 0, unit="waits", note=note)
    name = "no wait in a step of the pipeline, batches pinned"
    with proof.guarded(name), join_world(seed=0) as world:
        trainer = Trainer(recipe, base, world)
        pipeline = train_pipeline(trainer.model, trainer.optimizer, world)
        stream = repeated(pinned([full_batch(base.shape, base.batch_size, 0)]), 20)
        for _ in range(WARM_UP):
            pipeline.progress(stream)
        with no_waits(proof.device):
            for _ in range(WARM_UP):
                pipeline.progress(stream)
        proof.correct(name, 0, unit="waits", note=note)
