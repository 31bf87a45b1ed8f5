"""Where training and inference of production's shapes spend their time on one CPU core, compared to published results.

    python benchmarks/production_shapes.py --plot operator_shares.png    # 6 GB of memory
    python benchmarks/production_shapes.py --shapes rmc3 --sizes 1 64

Models and sizes are the presets of recipes/train_rmc.py with rows and lookups as published. Every bag has the same
number of ids, drawn uniformly. Times are medians of unprofiled passes. Shares are the operators' own time in
torch.profiler. 'other' is activations, losses, optimizers and TorchRec's bookkeeping around the lookups. This
bookkeeping does not depend on the batch, and takes most of a pass at batch size 1.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torchrec.distributed.model_parallel import DistributedModelParallel

from dlrm_torchrec.datasets.batch import Batch
from dlrm_torchrec.datasets.synthetic.uniform import uniform_batch
from dlrm_torchrec.recipe import TrainingRecipe, load_training_recipe
from dlrm_torchrec.sharding.cluster.topology import live_topology
from dlrm_torchrec.sharding.plan import make_plan
from dlrm_torchrec.train.optimizers import build_optimizer
from dlrm_torchrec.train.world import World, join_world

LOOKUPS, LAYERS, INTERACTION, OTHER = PARTS = ("lookups", "FC", "interaction", "other")
# DeepRecSys (ISCA 2020) for rmc1 to rmc3; arXiv 1906.00091, section 5.2, for dlrm-s
PUBLISHED = {"rmc1": LOOKUPS, "rmc2": LOOKUPS, "rmc3": LAYERS, "dlrm-s": f"{LOOKUPS}, {LAYERS}"}
PUBLISHED_SAMPLES_PER_S = 2_048_000 / 256  # dlrm-s, training, one socket of 20 cores (Xeon 6138), Caffe2
NAMES = {
    LOOKUPS: ("fbgemm::", "SplitLookupFunction"),
    LAYERS: ("aten::addmm", "aten::mm", "aten::linear", "AddmmBackward"),
    INTERACTION: ("aten::cat", "aten::bmm", "index", "CatBackward", "BmmBackward"),
}


@dataclass(frozen=True)
class Row:
    """One line of the table and one bar of the plot."""

    shape: str
    work: str  # training or inference
    batch_size: int
    milliseconds: float
    shares: dict[str, float]  # of PARTS, sum 1

    @property
    def samples_per_s(self) -> float:
        return 1e3 * self.batch_size / self.milliseconds

    @property
    def dominated_by(self) -> str:
        return max(PARTS, key=self.shares.__getitem__)


def passes(
    recipe: TrainingRecipe, cfg: Any, world: World, sizes: list[int]
) -> Iterator[tuple[str, int, Callable[[], Any]]]:
    """Inference with each batch size, and a training step with the preset's batch size."""
    model, tables = recipe.build(cfg, cfg.shape, world.size, world.device)
    topology = live_topology(world.device, world_size=world.size, local_size=world.local_size)
    plan = make_plan(model, tables, topology, cfg.sharding, batch_size=cfg.batch_size, spec=cfg.shape)
    model = DistributedModelParallel(
        model, device=world.device, plan=plan, sharders=plan.sharders, init_data_parallel=world.needs_ddp
    )
    optimizer = build_optimizer(model, cfg.sparse, cfg.dense)

    def train(batch: Batch) -> None:
        optimizer.zero_grad()
        loss, _ = model(batch)
        loss.backward()
        optimizer.step()

    @torch.no_grad()
    def infer(batch: Batch) -> None:
        model.module.model(batch.dense_features, batch.sparse_features)  # logits, without the task's loss

    model.eval()
    for size in sizes:
        batch = uniform_batch(cfg.shape, size)
        yield "inference", size, partial(infer, batch)
    model.train()
    batch = uniform_batch(cfg.shape, cfg.batch_size)
    yield "training", cfg.batch_size, partial(train, batch)


def measure(run: Callable[[], Any], seconds: float) -> tuple[float, dict[str, float]]:
    """Median milliseconds of a pass, and the parts' shares, measured for ``seconds`` and at least three passes."""
    run()
    milliseconds: list[float] = []
    begin = time.perf_counter()
    while len(milliseconds) < 3 or time.perf_counter() - begin < seconds / 2:
        start = time.perf_counter()
        run()
        milliseconds.append(1e3 * (time.perf_counter() - start))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        for _ in range(min(len(milliseconds), 100)):
            run()
    spent: Counter[str] = Counter()
    for event in profiler.key_averages():
        spent[part_of(event.key)] += event.self_cpu_time_total
    return statistics.median(milliseconds), {part: spent[part] / spent.total() for part in PARTS}


def part_of(operator: str) -> str:
    return next((part for part, names in NAMES.items() if any(name in operator for name in names)), OTHER)


def table(rows: list[Row]) -> str:
    lines = [f"{'shape':7} {'work':9} {'batch':>5} {'ms':>9} {'samples/s':>9}  " + "".join(f"{p:>12}" for p in PARTS)]
    for row in rows:
        speed = f"{row.milliseconds:>9.2f} {row.samples_per_s:>9.0f}"
        shares = "".join(f"{row.shares[part]:>12.1%}" for part in PARTS)
        lines.append(f"{row.shape:7} {row.work:9} {row.batch_size:>5} {speed}  {shares}")
    return "\n".join(lines)


def plot(rows: list[Row], path: str) -> None:
    from matplotlib.figure import Figure  # an optional dependency that only --plot needs

    figure = Figure(figsize=(9, 0.35 * len(rows) + 1.2), layout="constrained")
    axes = figure.subplots()
    names = [f"{row.shape} {row.work}, batch {row.batch_size}" for row in rows]
    left = [0.0] * len(rows)
    for part in PARTS:
        width = [100 * row.shares[part] for row in rows]
        axes.barh(names, width, left=left, label=part)
        left = [begin + share for begin, share in zip(left, width, strict=True)]
    axes.invert_yaxis()
    axes.set(xlim=(0, 100), xlabel="share of the operators' time, %")
    axes.legend(ncols=len(PARTS), loc="lower center", bbox_to_anchor=(0.5, 1.0))
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=PUBLISHED, default=list(PUBLISHED))
    parser.add_argument("--sizes", nargs="+", type=int, default=[1, 64, 512], help="batch sizes of inference")
    parser.add_argument("--seconds", type=float, default=3, help="seconds to spend on each kind of pass")
    parser.add_argument("--plot", help="file for a plot of the shares")
    args = parser.parse_args()
    torch.set_num_threads(1)
    recipe, rows = load_training_recipe("train_rmc"), []
    with join_world(seed=0) as world:
        for shape in args.shapes:
            for work, size, run in passes(recipe, recipe.PRESETS[shape], world, args.sizes):
                rows.append(Row(shape, work, size, *measure(run, args.seconds)))
                print(table(rows[-1:]).splitlines()[-1], file=sys.stderr, flush=True)
            del run
            gc.collect()  # the next shape's tables need the memory
    print(f"torch {torch.__version__}, one thread\n{table(rows)}")
    for shape in args.shapes:
        found = {row.dominated_by for row in rows if row.shape == shape and row.batch_size > 1}
        print(f"{shape}: most time in {', '.join(sorted(found))}; published: {PUBLISHED[shape]}")
    for row in rows:
        if row.shape == "dlrm-s" and row.work == "training":
            print(f"dlrm-s: {row.samples_per_s / PUBLISHED_SAMPLES_PER_S:.2f} of the samples/s published for 20 cores")
    if args.plot:
        plot(rows, args.plot)


if __name__ == "__main__":
    main()
