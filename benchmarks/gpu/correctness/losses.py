"""Losses on the device against those of the unsharded model on the CPU: every optimizer, storage and sharding type."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

from dlrm_torchrec.embeddings.config import OperationName, TablesConfig
from dlrm_torchrec.sharding.config import ShardingConfig, ShardingKind
from dlrm_torchrec.train.config import OptimizerConfig, OptimizerKind
from dlrm_torchrec.train.world import join_world

from ..proof import Proof
from ..shapes import small
from ..training import Trainer, apart, device_losses, reference_losses

SMALL = TablesConfig(collisions=4, threshold=4, hidden=8)
OPERATIONS: tuple[OperationName, ...] = get_args(OperationName)
COMPOSED = replace(SMALL, kind="quotient_remainder")
STORAGES: dict[str, TablesConfig] = {
    "plain": TablesConfig(),
    **{operation: replace(COMPOSED, operation=operation) for operation in OPERATIONS},
    "path, linear": replace(COMPOSED, operation="path", hidden=0),
    "mixed dims": replace(SMALL, kind="mixed_dimension"),
}
PARTITIONS = {
    "hash": replace(SMALL, kind="hash"),
    "mixed radix": replace(SMALL, kind="mixed_radix", partitions=3),
    "Chinese remainder": replace(SMALL, kind="chinese_remainder"),
}
RATES: dict[OptimizerKind, float] = {"sgd": 0.1, "adagrad": 0.05, "rowwise_adagrad": 0.05, "adam": 0.01}
SHARDINGS: tuple[ShardingKind, ...] = ("table_wise", "row_wise", "column_wise", "data_parallel")
MOST = 1e-4  # relative difference of a loss


def config(cfg: Any, kind: OptimizerKind, tables: TablesConfig | None = None) -> Any:
    """``cfg`` with one optimizer for tables and dense parameters."""
    optimizer = OptimizerConfig(kind=kind, lr=RATES[kind])
    dense = OptimizerConfig(kind="adagrad" if kind == "rowwise_adagrad" else kind, lr=RATES[kind])
    return replace(cfg, sparse=optimizer, dense=dense, tables=tables or TablesConfig())


def prove(proof: Proof) -> None:
    recipe, base = small()
    cases = {f"{storage}, {kind}": config(base, kind, STORAGES[storage]) for kind in RATES for storage in STORAGES}
    if proof.toy:
        cases = {name: cfg for name, cfg in cases.items() if "sgd" in name or name.startswith(("plain", "mult"))}
    cases |= {f"{name}, sgd": config(base, "sgd", tables) for name, tables in PARTITIONS.items()}
    for kind in SHARDINGS:
        cfg = config(base, "adagrad")
        cases[f"plain, adagrad, {kind}"] = replace(cfg, sharding=ShardingConfig(kind=kind))
    for name, cfg in cases.items():
        compare(proof, f"losses: {name}", recipe, cfg)


def compare(proof: Proof, name: str, recipe: Any, cfg: Any, *, at_most: float = MOST, **how: Any) -> None:
    """A row: how far the losses of the device are from those of the CPU; ``how`` is for the Trainer."""
    if not proof.cuda and cfg.sparse.kind == "adam":
        proof.skipped(name, "correctness", "FBGEMM has no Adam for tables on a CPU")
        return
    with proof.guarded(name), join_world(seed=0) as world:
        trainer = Trainer(recipe, cfg, world, **how)
        expected = reference_losses(recipe, cfg, trainer.weights())
        found = device_losses(trainer, cfg, proof.device)
        proof.correct(name, apart(found, expected), at_most=at_most, unit="relative")
