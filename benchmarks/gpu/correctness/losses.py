"""Losses and weights on the device against those of the unsharded model on the CPU.

Every optimizer, way to store tables, and sharding type.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, get_args

import torch
from safetensors.torch import save_file

from dlrm_torchrec.embeddings.assignments import Assignment
from dlrm_torchrec.embeddings.compositional.partitions.assigned import Assigned
from dlrm_torchrec.embeddings.config import OperationName, TablesConfig, TablesKind
from dlrm_torchrec.schema import DatasetSpec
from dlrm_torchrec.sharding.config import ShardingConfig, ShardingKind
from dlrm_torchrec.train.config import OptimizerConfig, OptimizerKind
from dlrm_torchrec.train.world import join_world

from ..proof import Proof
from ..shapes import small
from ..training import AnyBatch, Reference, Trainer, apart, astray, small_batches

SMALL = TablesConfig(collisions=4, threshold=4, hidden=8)
OPERATIONS: tuple[OperationName, ...] = tuple(name for name in get_args(OperationName) if name != "auto")
COMPOSED = replace(SMALL, kind="quotient_remainder")
STORAGES: dict[str, TablesConfig] = {
    "plain": TablesConfig(),
    **{operation: replace(COMPOSED, operation=operation) for operation in OPERATIONS},
    "path, linear": replace(COMPOSED, operation="path", hidden=0),
    "mixed dims": replace(SMALL, kind="mixed_dimension", alpha=1.0),
}
SHOWN: tuple[TablesKind, ...] = ("plain", "quotient_remainder", "mixed_dimension")  # as storages
LEFT_OUT = ("managed",)  # its rows follow the ids of steps, which the reference does not map
PARTITIONS: dict[TablesKind, dict[str, Any]] = {
    kind: {} for kind in get_args(TablesKind) if kind not in (*SHOWN, *LEFT_OUT)
}
PARTITIONS |= {
    "mixed_radix": {"partitions": 3},
    "hashes": {"operation": "add"},  # which mult would not suit
    "hot_cold": {"collisions": 2, "threshold": 40, "hot": 0.1},  # cold ids need rows enough to be told apart
}
RATES: dict[OptimizerKind, float] = {"sgd": 1.0, "adagrad": 0.05, "rowwise_adagrad": 0.05, "adam": 0.01}
SHARDINGS: tuple[ShardingKind, ...] = ("table_wise", "row_wise", "column_wise", "data_parallel")
MOST, ASTRAY = 1e-4, 1e-2  # relative difference of a loss; of a tensor's end, relative to its way


def config(cfg: Any, kind: OptimizerKind, tables: TablesConfig | None = None) -> Any:
    """``cfg`` with one optimizer for tables and dense parameters."""
    optimizer = OptimizerConfig(kind=kind, lr=RATES[kind])
    dense = OptimizerConfig(kind="adagrad" if kind == "rowwise_adagrad" else kind, lr=RATES[kind])
    return replace(cfg, sparse=optimizer, dense=dense, tables=tables or TablesConfig())


def prove(proof: Proof) -> None:
    recipe, base = small()
    cases = {f"{storage}, {kind}": config(base, kind, STORAGES[storage]) for kind in RATES for storage in STORAGES}
    if proof.toy:
        cases = {name: cfg for name, cfg in cases.items() if "sgd" in name or name.startswith("mult")}
    vocabularies = tuple(replace(feature, encoding="vocab") for feature in base.shape.sparse)  # hot_cold needs them
    base = replace(base, shape=replace(base.shape, sparse=vocabularies))
    changes = {**PARTITIONS, "clusters": {"assignments": assigned(base.shape)}}
    cases |= {f"{kind}, sgd": config(base, "sgd", replace(SMALL, kind=kind, **own)) for kind, own in changes.items()}
    for kind in SHARDINGS:
        cfg = config(base, "adagrad")
        cases[f"plain, adagrad, {kind}"] = replace(cfg, sharding=ShardingConfig(kind=kind))
    for name, cfg in cases.items():
        compare(proof, name, recipe, cfg)


def assigned(spec: DatasetSpec) -> str:
    """A folder with random classes of the ids of each table."""
    folder, generator = tempfile.mkdtemp(), torch.Generator().manual_seed(0)
    for table in spec.tables(dim=1):
        codes = [torch.randint(max(2, table.rows // 4), (table.rows,), generator=generator) for _ in range(2)]
        made = Assignment(assigned=Assigned(codes, complementary=False), made="by chance")
        save_file(made.tensors(), f"{folder}/{table.name}.safetensors", made.metadata())
    return folder


def compare(proof: Proof, name: str, recipe: Any, cfg: Any, *, coarse: float = 1.0, **how: Any) -> None:
    """``judge`` for steps of a Trainer, which gets ``how``."""
    if not proof.cuda and cfg.sparse.kind == "adam":
        proof.skipped(f"losses: {name}", "correctness", "FBGEMM has no Adam for tables on a CPU")
        return
    with proof.guarded(f"losses: {name}"), join_world(seed=0) as world:
        trainer = Trainer(recipe, cfg, world, **how)
        batches = small_batches(cfg)
        judge(proof, name, trainer, Reference(recipe, cfg, trainer.weights()), batches=batches, coarse=coarse)


Step = Callable[[AnyBatch], torch.Tensor]


def judge(
    proof: Proof,
    name: str,
    trainer: Trainer,
    reference: Reference,
    *,
    batches: Sequence[AnyBatch],
    step: Step | None = None,
    coarse: float = 1.0,
) -> None:
    """Train both models on the batches, and tell how far they are apart.

    Args:
        proof: gets the rows
        name: what is judged
        trainer: the model on the device
        reference: the same model, with the same weights
        batches: on the CPU
        step: trains the model on a batch of the device and returns its loss; None: ``trainer.step``
        coarse: how many times as large as in float32 differences may be
    """
    start = reference.weights()
    expected = [float(reference.step(batch)) for batch in batches]
    found = [float((step or trainer.step)(batch.to(proof.device))) for batch in batches]
    proof.correct(f"losses: {name}", apart(found, expected), at_most=coarse * MOST, unit="relative")
    difference = astray(trainer.weights(), reference.weights(), start)
    proof.correct(f"weights: {name}", difference, at_most=coarse * ASTRAY, unit="of their way")
