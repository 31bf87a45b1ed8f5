"""Planned and held bytes, and planned and measured time of the tables' part of a step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from dlrm_torchrec.sharding.cluster.machines import CPU
from dlrm_torchrec.sharding.cluster.topology import Cluster
from dlrm_torchrec.sharding.config import ShardingConfig
from dlrm_torchrec.sharding.dry_run import DryRun
from dlrm_torchrec.sharding.estimate.correction import tables_milliseconds
from dlrm_torchrec.sharding.estimate.estimate import Estimate
from dlrm_torchrec.train.timing.step_times import held_bytes
from dlrm_torchrec.train.timing.timed_step import TimedStep
from dlrm_torchrec.train.world import join_world

from ..correctness.machine import machine_of
from ..proof import Proof
from ..shapes import kaggle, random_batches, repeated, rm, spec_of
from ..training import Trainer

STEPS, WARM_UP = 10, 5


def prove(proof: Proof) -> None:
    machine = machine_of(proof.device) if proof.cuda else CPU
    if machine is None:
        proof.skipped("planned over measured", "speed", "this GPU is not in the machine table")
        return
    factors: dict[str, float] = {}
    for shape, (recipe, cfg) in cases(toy=proof.toy).items():
        with proof.guarded(f"planned over measured, {shape}", "speed"):
            plan = DryRun(recipe.build, cfg.shape, {})(cfg, Cluster(machine, 1, 1))
            (parts,) = plan.rank_milliseconds()
            factors[shape] = sum(parts.values()) / measure(proof, shape, plan, recipe=recipe, cfg=cfg)
            proof.measured(f"planned over measured, {shape}", factors[shape], unit="x")
    first, *others = factors.items() if factors else [("", 1.0)]
    for shape, factor in others:
        name = f"planned over measured, {shape}, corrected by {first[0]}"
        proof.measured(name, factor / first[1], unit="x", at_least=1 / 1.2, at_most=1.2)


def cases(*, toy: bool) -> dict[str, tuple[Any, Any]]:
    """Models whose tables are all table-wise, and one with rows of another width."""
    found: dict[str, tuple[Any, Any]] = {"rm-like": rm(toy=toy), "kaggle-like": kaggle(toy=toy, batch_size=32_768)}
    recipe, cfg = rm(toy=toy)
    wide = spec_of([300 if toy else 1_000_000] * 8, [10] * 8)
    found["8 tables of dim 128"] = recipe, replace(cfg, shape=wide, bottom=(64, 128), batch_size=64 if toy else 16_384)
    wanted = ShardingConfig(kind="table_wise")
    return {name: (recipe, replace(cfg, sharding=wanted)) for name, (recipe, cfg) in found.items()}


def measure(proof: Proof, shape: str, plan: Estimate, *, recipe: Any, cfg: Any) -> float:
    """Milliseconds of the tables' part of a step; rows about the bytes that the plan foresaw."""
    if proof.cuda:
        torch.cuda.reset_peak_memory_stats(proof.device)
    with join_world(seed=0) as world:
        trainer = Trainer(recipe, cfg, world)
        batches = repeated(random_batches(cfg.shape, cfg.batch_size, count=4, device=proof.device), WARM_UP + STEPS)
        timed = TimedStep(trainer.model, trainer.optimizer, world)
        spent = [sum(tables_milliseconds(timed.run(batches)[2]).values()) for _ in range(WARM_UP + STEPS)]
        weights, moments = held_bytes(trainer.model, trainer.optimizer)
    shards = plan.shards_of(0)
    for what, held, planned in (
        ("weights", weights, sum(each.weight_bytes for each in shards)),
        ("moments", moments, sum(each.optimizer_bytes for each in shards)),
    ):
        proof.correct(f"bytes of {what} that were not planned, {shape}", abs(held - planned), unit="bytes")
    if proof.cuda:
        peak, most = torch.cuda.max_memory_allocated(proof.device), plan.rank_bytes("hbm")[0] + plan.hbm_reserved[0]
        proof.measured(f"most bytes at a time, {shape}", peak / 1e9, unit="GB", kind="memory", at_most=most / 1e9)
        proof.measured(
            f"planned tables and buffers, {shape}", plan.rank_bytes("hbm")[0] / 1e9, unit="GB", kind="memory"
        )
    return sorted(spent[WARM_UP:])[STEPS // 2]
