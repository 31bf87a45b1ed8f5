"""Bytes that a rank sends, and AUC, with vectors and gradients in fewer bits, for the demo of recipes/train_dlrm.py.

    OMP_NUM_THREADS=1 torchrun --standalone --nproc_per_node 2 benchmarks/quantized_comms.py
    OMP_NUM_THREADS=1 torchrun --standalone --nproc_per_node 2 benchmarks/quantized_comms.py --sharding row_wise

Every setting trains the same rows from the same weights and takes about 20 seconds. Bytes are for one step, averaged
over ranks and counted from the collectives that ran. The MLPs' gradients are not quantised. A step is not faster here,
because the ranks of one machine exchange data through its memory.
"""

from __future__ import annotations

import logging
import time
import warnings
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
import torch.distributed as dist
import tyro
from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection
from torchrec.distributed.model_parallel import DistributedModelParallel

from dlrm_torchrec.datasets.synthetic.clicks import SyntheticStream
from dlrm_torchrec.embeddings.initialize import initialize_tables
from dlrm_torchrec.recipe import load_training_recipe
from dlrm_torchrec.sharding.cluster.topology import live_topology
from dlrm_torchrec.sharding.config import CommsConfig, Precision, ShardingConfig, ShardingKind
from dlrm_torchrec.sharding.modules.sharder import ROW_TYPES
from dlrm_torchrec.sharding.plan import make_plan
from dlrm_torchrec.train.metrics.labels import evaluate
from dlrm_torchrec.train.optimizers import build_optimizer
from dlrm_torchrec.train.pipeline import train_pipeline
from dlrm_torchrec.train.schedule import ScheduledLearningRate
from dlrm_torchrec.train.timing.wire import Wire
from dlrm_torchrec.train.world import World, join_world

SETTINGS: list[tuple[Precision, Precision]] = [
    ("fp32", "fp32"),
    ("bf16", "bf16"),
    ("fp16", "bf16"),
    ("fp16", "fp16"),
    ("int8", "fp16"),
    ("int8", "int8"),
]


def train(recipe: Any, cfg: Any, rows: int, world: World) -> tuple[dict[str, float], float, list[float]]:
    """Validation metrics, milliseconds per step, and bytes of ids, vectors, their gradients and the MLPs' gradients."""
    torch.manual_seed(cfg.seed)
    model, tables = recipe.build(cfg, cfg.shape, world.size, world.device)
    topology = live_topology(world.device, world_size=world.size, local_size=world.local_size)
    share = cfg.batch_size // world.size  # of a rank
    plan = make_plan(model, tables, topology, cfg.sharding, batch_size=share, spec=cfg.shape, group=world.control)
    model = DistributedModelParallel(model, device=world.device, plan=plan, sharders=plan.sharders)
    initialize_tables(model, seed=cfg.seed)
    optimizer = build_optimizer(model, cfg.sparse, cfg.dense)
    shares = {"rank": world.rank, "world_size": world.size, "seed": cfg.seed}
    stream = SyntheticStream(cfg.shape, num_rows=rows, global_batch_size=cfg.batch_size, **shares)
    val = SyntheticStream(cfg.shape, split="val", num_rows=65_536, global_batch_size=8192, **shares)
    learning_rate = ScheduledLearningRate(optimizer, cfg.schedule, stream.num_steps)
    pipeline, batches = train_pipeline(model, optimizer, world), stream.batches()
    start = time.perf_counter()
    for step in range(stream.num_steps):
        learning_rate.set(step)
        pipeline.progress(batches)
    milliseconds = 1e3 * (time.perf_counter() - start) / stream.num_steps
    metrics = evaluate(pipeline.detach(), val.batches(), world, learned=True)
    (batch,) = islice(stream.batches(), 1)
    return metrics, milliseconds, sent(model, batch.to(world.device), world)


def sent(model: DistributedModelParallel, batch: Any, world: World) -> list[float]:
    """Bytes of a step, averaged over the ranks; the tables take their step twice."""
    (sharded,) = (module for module in model.modules() if isinstance(module, ShardedEmbeddingBagCollection))
    context = sharded.create_context()
    with Wire() as ids:
        arrived = sharded.input_dist(context, batch.sparse_features).wait().wait()
    with Wire() as vectors:
        pooled = sharded.compute_and_output_dist(context, arrived).wait()
    with Wire() as gradients:
        pooled.values().sum().backward()
    loss, _ = model(batch)
    with Wire() as backward:
        loss.backward()
    counted = torch.tensor([sum(each.sent) for each in (ids, vectors, gradients, backward)], dtype=torch.float64)
    dist.all_reduce(counted, group=world.control)
    *parts, last = (counted / world.size).tolist()
    return [*parts, last - parts[-1]]


def main(sharding: ShardingKind = "table_wise", rows: int = 2_457_600, seed: int = 0) -> None:
    """Prints one line per setting."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    recipe = load_training_recipe("train_dlrm")
    with join_world(seed) as world:
        say = print if world.is_main else lambda *_, **__: None
        say(f"{sharding}, {world.size} ranks; bytes that a rank sends in a step")
        say("forward  backward      ids  vectors  gradients     MLPs     ms     AUC  log-loss")
        for forward, backward in SETTINGS:
            if sharding in ROW_TYPES and "int8" in (forward, backward):
                continue
            comms = CommsConfig(forward=forward, backward=backward)
            cfg = replace(recipe.Config(), sharding=ShardingConfig(kind=sharding, comms=comms), seed=seed)
            metrics, milliseconds, (ids, vectors, gradients, dense) = train(recipe, cfg, rows, world)
            say(
                f"{forward:<7}  {backward:<8} {ids:8,.0f} {vectors:8,.0f}  {gradients:9,.0f} {dense:8,.0f}  "
                f"{milliseconds:5.1f}  {metrics['auc']:.4f}  {metrics['logloss']:.5f}",
                flush=True,
            )


if __name__ == "__main__":
    tyro.cli(main)
