"""Step time of recipes/train_dlrm.py as shipped, relative to the same TorchRec model in a bare loop (goal: <= 1.03).

    OMP_NUM_THREADS=1 python benchmarks/step_overhead.py      # two threads would disturb each other on a small machine

Both train the demo with the same stream, plan, optimizers and initial weights. They take turns in one process, and each
pair of runs gives one ratio. Only the recipe has the pipeline, the log, the schedule and the stop signal.
"""

import contextlib
import io
import os
import statistics
import tempfile
import time
from dataclasses import replace
from types import ModuleType
from typing import Any

import torch
import tyro
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.models.dlrm import DLRM

from dlrm_torchrec.datasets.open import open_streams
from dlrm_torchrec.datasets.stream import Ranks
from dlrm_torchrec.embeddings.initialize import initialize_tables
from dlrm_torchrec.embeddings.tables import build_tables
from dlrm_torchrec.recipe import load_recipe
from dlrm_torchrec.sharding.cluster.topology import live_topology
from dlrm_torchrec.sharding.plan import make_plan
from dlrm_torchrec.train.optimizers import build_optimizer, optimize_tables_in_backward
from dlrm_torchrec.train.task import BinaryRankingTask
from dlrm_torchrec.train.world import join_world


def bare_samples_per_s(cfg: Any) -> float:
    """Samples per second of zero_grad, forward, backward and step in a plain loop over the same batches."""
    with join_world(cfg.seed) as world:
        spec = cfg.shape
        tables = build_tables(spec.tables(dim=cfg.bottom[-1]))
        dlrm = DLRM(tables, len(spec.dense), list(cfg.bottom), list(cfg.top), dense_device=world.device)
        model = BinaryRankingTask(dlrm, world.size)
        optimize_tables_in_backward(tables, cfg.sparse)
        topology = live_topology(world.device, world_size=world.size, local_size=world.local_size)
        share = cfg.batch_size // world.size  # of a rank
        plan = make_plan(model, tables, topology, cfg.sharding, batch_size=share, spec=spec, group=world.control)
        model = DistributedModelParallel(
            model, device=world.device, plan=plan, sharders=plan.sharders, init_data_parallel=world.needs_ddp
        )
        initialize_tables(model, seed=cfg.seed)
        optimizer = build_optimizer(model, cfg.sparse, cfg.dense)
        ranks = Ranks(cfg.batch_size, world.rank, world.size)
        stream = open_streams(cfg.data, spec, ranks, rows=cfg.rows, epochs=1, seed=cfg.seed, lanes=world.size)["train"]
        begin = time.perf_counter()
        for batch in stream.batches():
            optimizer.zero_grad()
            loss, _ = model(batch.to(world.device))
            loss.backward()
            optimizer.step()
        loss.item()
        return stream.num_steps * cfg.batch_size / (time.perf_counter() - begin)


def recipe_samples_per_s(recipe: ModuleType, cfg: Any) -> float:
    """Samples per second that the recipe reports for its run."""
    silent = io.StringIO()
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.redirect_stdout(silent),
        contextlib.redirect_stderr(silent),
    ):
        return recipe.main("overhead", replace(cfg, run_dir=folder))["samples_per_s"]


def main(steps: int = 300, pairs: int = 5) -> None:
    recipe = load_recipe("train_dlrm")
    demo = recipe.Config()
    cfg = replace(demo, rows=steps * demo.batch_size, eval_every=0)
    ratios = []
    for pair in range(pairs + 1):  # the first pair warms up
        shipped = recipe_samples_per_s(recipe, cfg)
        bare = bare_samples_per_s(cfg)
        if pair:
            ratios.append(bare / shipped)
        if int(os.environ.get("RANK", 0)) == 0:
            print(f"pair {pair}: recipe {shipped:,.0f} samples/s, bare loop {bare:,.0f} samples/s", flush=True)
    if int(os.environ.get("RANK", 0)) == 0:
        print(
            f"step time, recipe over bare loop: median {statistics.median(ratios):.3f} "
            f"({min(ratios):.3f} to {max(ratios):.3f}, {pairs} pairs of {steps} steps, torch {torch.__version__})"
        )


if __name__ == "__main__":
    tyro.cli(main)
