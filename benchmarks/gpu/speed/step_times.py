"""Time of a step with compositional tables over that with plain tables of four times the rows, equal ids."""

from __future__ import annotations

import statistics
from dataclasses import replace
from typing import Any

from dlrm_torchrec.embeddings.config import TablesConfig
from dlrm_torchrec.train.world import join_world

from ..correctness.losses import OPERATIONS
from ..proof import Proof
from ..shapes import kaggle, random_batches, repeated, rm
from ..training import Trainer

COMPOSED: dict[str, TablesConfig] = {
    operation: TablesConfig(kind="quotient_remainder", operation=operation, hidden=16)
    for operation in OPERATIONS
    if operation != "feature_generation"
}
MOST = dict.fromkeys(COMPOSED, 1.15) | {"path": 1.5}  # goals


def prove(proof: Proof) -> None:
    shapes = (("kaggle-like", kaggle, 2048), ("kaggle-like", kaggle, 32_768), ("rm-like", rm, 2048))
    for shape, make, size in shapes[: 1 if proof.toy else 3]:
        recipe, cfg = make(toy=proof.toy)
        compare(proof, f"{shape}, batch {size:,}", recipe, cfg if proof.toy else replace(cfg, batch_size=size))


def compare(proof: Proof, shape: str, recipe: Any, cfg: Any) -> None:
    """A row for each operation: its median step over that of plain tables; the contenders take turns."""
    steps, rounds = (2, 1) if proof.toy else (20, 5)
    with proof.guarded(f"step, {shape}", "speed"), join_world(seed=0) as world:
        batches = random_batches(cfg.shape, cfg.batch_size, count=4, device=proof.device)
        contenders = {"plain": Trainer(recipe, cfg, world)}
        for operation, tables in COMPOSED.items():
            with proof.guarded(f"step, {operation} over plain, {shape}", "speed"):
                contenders[operation] = Trainer(recipe, replace(cfg, tables=tables), world)
        taken: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(rounds):
            for name, trainer in list(contenders.items()):
                with proof.guarded(f"step, {name} over plain, {shape}", "speed"):
                    stream = repeated(batches, 2 * steps)
                    taken[name].append(proof.milliseconds(trainer.steps, stream, steps, times=1) / steps)
                    continue
                del contenders[name]
        plain = statistics.median(taken["plain"])
        proof.measured(f"step, plain, {shape}", plain, unit="ms")
        for name in contenders:
            if name != "plain":
                ratio = statistics.median(taken[name]) / plain
                proof.measured(f"step, {name} over plain, {shape}", ratio, unit="x", at_most=MOST[name])
