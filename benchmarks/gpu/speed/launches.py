"""Kernels that a step launches, with plain and with compositional tables; each launch costs 5 to 10 microseconds."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch.profiler import ProfilerActivity, profile

from dlrm_torchrec.datasets.batch import Batch
from dlrm_torchrec.embeddings.config import TablesConfig
from dlrm_torchrec.train.world import join_world

from ..proof import Proof
from ..shapes import kaggle, random_batches, rm
from ..training import Trainer
from .step_times import COMPOSED

STEPS = 3
MORE = 30  # than with plain tables, for the one group of (operation, dim)


def prove(proof: Proof) -> None:
    shapes = (("kaggle-like", kaggle), ("rm-like", rm))
    for shape, make in shapes[: 1 if proof.toy else 2]:
        recipe, cfg = make(toy=proof.toy)
        batch = random_batches(cfg.shape, cfg.batch_size, count=1, device=proof.device)[0]
        plain: float | None = None
        for name, tables in [("plain", TablesConfig()), *COMPOSED.items()]:
            row = f"launches of a step, {name}, {shape}"
            with proof.guarded(row, "speed"), join_world(seed=0) as world:
                launched = count(Trainer(recipe, replace(cfg, tables=tables), world), batch)
                most = None if plain is None else plain + MORE
                plain = launched if plain is None else plain
                unit = "launches" if proof.cuda else "operators"
                proof.measured(row, launched, unit=unit, at_most=most)


def count(trainer: Trainer, batch: Batch) -> float:
    """Launches of a step; on a CPU, operators."""
    for _ in range(STEPS):
        trainer.step(batch)
    cuda = torch.cuda.is_available()
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as profiler:
        for _ in range(STEPS):
            trainer.step(batch)
    names = ("cudaLaunch", "cuLaunch") if cuda else ("aten::", "fbgemm::")
    found = sum(event.count for event in profiler.key_averages() if event.key.startswith(names)) / STEPS
    if not found:
        raise RuntimeError("torch.profiler saw no launch; it needs CUPTI")
    return found
