"""The demo of train_dlrm as it ships, from its start to its last evaluation and checkpoint, and a resumed run."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from dlrm_torchrec.recipe import load_training_recipe

from ..proof import Proof


def prove(proof: Proof) -> None:
    recipe = load_training_recipe("train_dlrm")
    steps = 8 if proof.toy else 200
    with tempfile.TemporaryDirectory() as folder:
        cfg = recipe.Config(rows=2048 * steps, eval_every=0, run_dir=f"{folder}/whole")
        with proof.guarded("demo: share of the best possible gain in AUC"):
            metrics = recipe.main("demo", cfg)
            share = (metrics["val/auc"] - 0.5) / (metrics["teacher/auc"] - 0.5)
            proof.at_least("demo: share of the best possible gain in AUC", share, 0.0 if proof.toy else 0.9)
            proof.measured("demo: samples/s, rows made in the loop", metrics["samples_per_s"], unit="samples/s")
        with proof.guarded("demo: resumed run over an undisturbed one"):
            parts = replace(cfg, run_dir=f"{folder}/parts", schedule=replace(cfg.schedule, decay_steps=0))
            whole = recipe.main("demo", replace(parts, run_dir=f"{folder}/again"))
            recipe.main("demo", replace(parts, rows=2048 * (steps // 2)))
            resumed = recipe.main("demo", parts)
            difference = abs(resumed["val/logloss"] / whole["val/logloss"] - 1)
            proof.correct(
                "demo: resumed run over an undisturbed one", difference, at_most=1e-4, unit="relative log-loss"
            )
            size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
            proof.measured("demo: three runs' folders", size / 1e6, unit="MB", kind="memory")
