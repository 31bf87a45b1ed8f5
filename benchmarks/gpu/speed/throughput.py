"""Samples per second of a recipe as it ships, and of the same model in a bare loop over DistributedModelParallel.

The recipe has its plan, its choice of speed, its pipeline and its schedule; only the log is left out. The bare loop has
TorchRec's own plan and sharder. Batches lie in the host's pinned memory for both.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.planner import EmbeddingShardingPlanner
from torchrec.distributed.sharding_plan import get_default_sharders

from dlrm_torchrec.datasets.batch import Batch
from dlrm_torchrec.sharding.cluster.topology import live_topology
from dlrm_torchrec.train.config import Speed
from dlrm_torchrec.train.optimizers import build_optimizer
from dlrm_torchrec.train.pipeline import train_pipeline
from dlrm_torchrec.train.schedule import ScheduledLearningRate
from dlrm_torchrec.train.speed import use_speed
from dlrm_torchrec.train.world import World, join_world

from ..proof import Proof
from ..shapes import kaggle, mlperf, pinned, random_batches, repeated, rmc2
from ..training import Trainer

MLPERF_SAMPLES_PER_S = 1.7e6  # of one of eight H100, MLPerf training v3.1
ROUNDS = 3
Steps = Callable[[int], None]


def prove(proof: Proof) -> None:
    shapes = {
        "MLPerf DCNv2, tables of at most 4 M rows, batch 65,536": (mlperf(toy=proof.toy), 20),
        "kaggle-like, batch 65,536": (kaggle(toy=proof.toy, batch_size=65_536), 40),
        "kaggle-like, batch 2,048": (kaggle(toy=proof.toy), 200),
        "RMC2, batch 4,096": (rmc2(toy=proof.toy), 20),
    }
    for shape, ((recipe, cfg), steps) in shapes.items():
        with proof.guarded(f"samples/s, {shape}", "speed"), join_world(seed=0) as world:
            compare(proof, shape, recipe, cfg, world=world, steps=2 if proof.toy else steps)


def compare(proof: Proof, shape: str, recipe: Any, cfg: Any, *, world: World, steps: int) -> None:
    batches = pinned(random_batches(cfg.shape, cfg.batch_size, count=4, device=proof.device))
    shipped, speed = as_shipped(recipe, cfg, world, batches)
    ours = samples_per_s(proof, shipped, cfg.batch_size, steps)
    del shipped
    least = MLPERF_SAMPLES_PER_S if shape.startswith("MLPerf") else None
    said = " ".join(speed)
    proof.measured(f"recipe, {shape}", ours, unit="samples/s", at_least=least, note=f"speed {said}")
    choices: set[Speed] = {("exact",), speed}
    for choice in sorted(choices):
        name = f"recipe over bare loop in {' '.join(choice)}, {shape}"
        with proof.guarded(name, "speed"):
            theirs = samples_per_s(proof, bare(recipe, cfg, world, (batches, choice)), cfg.batch_size, steps)
            note = f"bare loop {theirs:,.0f} samples/s"
            proof.measured(name, ours / theirs, unit="x", at_least=1.0, note=note)


def samples_per_s(proof: Proof, train: Steps, batch_size: int, steps: int) -> float:
    """The median of some rounds of ``steps`` steps."""
    train(steps // 2 + 1)
    found = []
    for _ in range(1 if proof.toy else ROUNDS):
        begin = proof.now()
        train(steps)
        found.append(steps * batch_size / (proof.now() - begin))
    return statistics.median(found)


def as_shipped(recipe: Any, cfg: Any, world: World, batches: list[Batch]) -> tuple[Steps, Speed]:
    """The recipe's loop, and the speed that it chose."""
    trainer = Trainer(recipe, cfg, world, speed=("auto",))
    pipeline = train_pipeline(trainer.model, trainer.optimizer, world)
    learning_rate = ScheduledLearningRate(trainer.optimizer, cfg.schedule, cfg.rows // cfg.batch_size)
    stream = repeated(batches, 1 << 30)

    def train(steps: int) -> None:
        for step in range(steps):
            learning_rate.set(step)
            pipeline.progress(stream)

    return train, trainer.speed


def bare(recipe: Any, cfg: Any, world: World, given: tuple[list[Batch], Speed]) -> Steps:
    """TorchRec's plan and a loop of its own, over batches at a speed."""
    batches, speed = given
    task, _ = recipe.build(cfg, cfg.shape, world.size, world.device)
    use_speed(task, speed)
    topology, sharders = live_topology(world.device, world_size=1, local_size=1), get_default_sharders()
    planner = EmbeddingShardingPlanner(topology=topology, batch_size=cfg.batch_size, stats=[])
    plan = planner.collective_plan(task, sharders, world.control)
    model = DistributedModelParallel(
        task, device=world.device, plan=plan, sharders=sharders, init_data_parallel=world.needs_ddp
    )
    optimizer = build_optimizer(model, cfg.sparse, cfg.dense)
    stream = repeated(batches, 1 << 30)

    def train(steps: int) -> None:
        for _ in range(steps):
            batch = next(stream).to(world.device, non_blocking=True)
            optimizer.zero_grad()
            loss, _ = model(batch)
            loss.backward()
            optimizer.step()

    return train
