"""HSTU, which reads histories: losses and weights against those of the CPU, steps without waits, and a short run."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from itertools import islice
from typing import Any

from dlrm_torchrec.datasets.sequences.batch import SequenceBatch
from dlrm_torchrec.datasets.sequences.open import open_sequences
from dlrm_torchrec.datasets.stream import Ranks
from dlrm_torchrec.recipe import load_training_recipe
from dlrm_torchrec.sharding.config import ShardingConfig
from dlrm_torchrec.train.config import OptimizerConfig
from dlrm_torchrec.train.world import join_world

from ..proof import Proof
from ..shapes import pinned
from ..training import STEPS, Reference, Trainer
from .losses import COMPOSED, judge
from .precision import COARSE
from .waits import WARM_UP, no_waits

GAIN = 0.3  # of the best possible one, which a tenth of the demo's users reach at least


def prove(proof: Proof) -> None:
    recipe = load_training_recipe("train_hstu")
    base = replace(
        recipe.Config(),
        rows=400,
        batch_size=64,
        sparse=OptimizerConfig(kind="sgd", lr=1.0),
        dense=OptimizerConfig(kind="sgd", lr=0.1),
        sharding=ShardingConfig(kind="table_wise"),
    )
    mlperf = replace(base, hstu=replace(base.hstu, variant="mlperf", chunk_tokens=400))
    cases: dict[str, tuple[Any, dict[str, Any]]] = {
        "HSTU": (base, {}),
        "HSTU, MLPerf's layers in chunks": (mlperf, {}),
        "HSTU, mult": (replace(base, tables=COMPOSED), {}),
        "histories as bags of events": (replace(base, history="pooled"), {}),
        "HSTU in bf16": (base, {"coarse": COARSE, "speed": ("bf16",)}),
    }
    for name, (cfg, how) in cases.items():
        compare(proof, name, recipe, cfg, **how)
    for name, (cfg, _) in list(cases.items())[:3]:
        train_without_waiting(proof, f"no wait in a step: {name}", recipe, cfg)
    name = "HSTU's demo, a tenth of its users: share of the best possible gain in AUC"
    with proof.guarded(name), tempfile.TemporaryDirectory() as folder:
        metrics = recipe.main("demo", recipe.Config(rows=100 if proof.toy else 5000, eval_every=0, run_dir=folder))
        share = (metrics["val/auc"] - 0.5) / (metrics["teacher/auc"] - 0.5)
        proof.at_least(name, share, -1.0 if proof.toy else GAIN)
        proof.measured("HSTU's demo: candidates/s", metrics["samples_per_s"], unit="candidates/s")


def batches_of(cfg: Any, count: int) -> list[SequenceBatch]:
    """Batches of training, on the host."""
    alone = Ranks(cfg.batch_size, 0, 1)
    streams = open_sequences("synthetic", cfg.shape, alone, cfg.samples, users=cfg.rows, epochs=1, seed=0)
    return list(islice(streams["train"].batches(), count))


def compare(proof: Proof, name: str, recipe: Any, cfg: Any, *, coarse: float = 1.0, **how: Any) -> None:
    """``judge`` for steps of a Trainer, which gets ``how``."""
    with proof.guarded(f"losses: {name}"), join_world(seed=0) as world:
        trainer = Trainer(recipe, cfg, world, **how)
        reference = Reference(recipe, cfg, trainer.weights())
        judge(proof, name, trainer, reference, batches=batches_of(cfg, STEPS), coarse=coarse)


def train_without_waiting(proof: Proof, name: str, recipe: Any, cfg: Any) -> None:
    """A row that says that nothing waited."""
    with proof.guarded(name), join_world(seed=0) as world:
        trainer = Trainer(recipe, cfg, world)
        batches = [batch.to(proof.device) for batch in pinned(batches_of(cfg, 2 * WARM_UP))]
        for batch in batches[:WARM_UP]:
            trainer.step(batch)
        with no_waits(proof.device):
            for batch in batches[WARM_UP:]:
                trainer.step(batch)
        proof.correct(name, 0, unit="waits", note="" if proof.cuda else "a CPU is never waited for")
