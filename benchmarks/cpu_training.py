"""Training speed on CPU: this library's fast path against TorchRec in float32 in a bare loop, with the same optimizer.

    python benchmarks/cpu_training.py                                  # both shapes, both optimizers; 6 GB of memory
    python benchmarks/cpu_training.py --shapes rm --optimizers sgd     # one of the four

Both contenders are a ``DistributedModelParallel`` of one process with fused table-wise tables. They start from the same
weights, see the same batches in the same order, and take turns. The ratio of a round divides the contenders' median
step times, and the reported ratio is the median over rounds.

The fast path has ``ConcurrentSharder`` (lookups on all cores), ``compile_dense`` and bfloat16 autocast of the dense
parts, no DDP around a single process, and for SGD ``rowwise_sgd`` on the tables (the same update with a faster kernel).
The shape "kaggle" has the tables of Criteo Kaggle, capped at 100,000 rows; "rm" has 32 tables with 20 lookups per bag.
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.optim import _apply_optimizer_in_backward as apply_in_backward
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.sharding_plan import construct_module_sharding_plan, table_wise
from torchrec.distributed.types import EmbeddingModuleShardingPlan, ShardingPlan
from torchrec.models.dlrm import DLRM
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.optim import RowWiseAdagrad
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrm_torchrec.sharding.modules.concurrent import ConcurrentSharder
from dlrm_torchrec.train.compile import compile_dense
from dlrm_torchrec.train.rowwise_sgd import rowwise_sgd

DENSE = 13
# rows of Criteo Kaggle's 26 columns, capped at 100,000
KAGGLE_ROWS = [1460, 583, 100000, 100000, 305, 24, 12517, 633, 3, 93145, 5683, 100000, 3194]
KAGGLE_ROWS += [27, 14992, 100000, 10, 5652, 2173, 4, 100000, 18, 15, 100000, 105, 100000]
Batch = tuple[torch.Tensor, KeyedJaggedTensor, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Shape:
    rows: list[int]
    dim: int
    lookups: int  # per bag
    bottom: list[int]
    top: list[int]


SHAPES = {
    "kaggle": Shape(rows=KAGGLE_ROWS, dim=16, lookups=1, bottom=[512, 256, 64, 16], top=[512, 256, 1]),
    "rm": Shape(rows=[200_000] * 32, dim=64, lookups=20, bottom=[256, 128, 64], top=[128, 64, 1]),
}
# learning rates of the tables and of the dense parts
RATES = {"sgd": (0.1, 0.1), "rowwise_adagrad": (0.01, 0.01)}


def synthetic_batches(shape: Shape, batch_size: int, count: int) -> list[Batch]:
    """Batches of uniform ids; a logistic model with one hidden effect per id draws the labels, so models can learn."""
    generator = torch.Generator().manual_seed(1)
    tables = len(shape.rows)
    effects = [torch.randn(rows, generator=generator) for rows in shape.rows]
    direction = torch.randn(DENSE, generator=generator)
    batches = []
    for _ in range(count):
        ids = [torch.randint(rows, (batch_size, shape.lookups), generator=generator) for rows in shape.rows]
        dense = torch.rand(batch_size, DENSE, generator=generator)
        sparse = sum(effect[bag].sum(1) for effect, bag in zip(effects, ids, strict=True))
        logits = dense @ direction + 2 * sparse / (tables * shape.lookups) ** 0.5 - 1
        labels = torch.bernoulli(torch.sigmoid(logits), generator=generator)
        features = KeyedJaggedTensor(
            keys=[f"f{table}" for table in range(tables)],
            values=torch.cat([bag.flatten() for bag in ids]),
            lengths=torch.full((tables * batch_size,), shape.lookups),
        )
        batches.append((dense, features, labels))
    return batches


class Contender:
    """A model, its optimizers, and the times and losses of its steps."""

    def __init__(self, shape: Shape, optimizer: str, *, fast: bool) -> None:
        torch.manual_seed(0)
        tables = EmbeddingBagCollection(
            device=torch.device("meta"),
            tables=[
                EmbeddingBagConfig(
                    name=f"t{number}", num_embeddings=rows, embedding_dim=shape.dim, feature_names=[f"f{number}"]
                )
                for number, rows in enumerate(shape.rows)
            ],
        )
        table_rate, dense_rate = RATES[optimizer]
        kind: type[torch.optim.Optimizer] = torch.optim.SGD if optimizer == "sgd" else RowWiseAdagrad
        arguments: dict[str, Any] = {"lr": table_rate} if optimizer == "sgd" else {"lr": table_rate, "eps": 1e-8}
        if fast and optimizer == "sgd":
            kind, arguments = rowwise_sgd(table_rate)
        apply_in_backward(kind, tables.parameters(), arguments)

        dlrm = DLRM(tables, DENSE, shape.bottom, shape.top, dense_device=torch.device("cpu"))
        if fast:
            compile_dense(dlrm)
        self.fast = fast
        sharder = ConcurrentSharder() if fast else EmbeddingBagCollectionSharder()
        placed: EmbeddingModuleShardingPlan = construct_module_sharding_plan(
            tables,
            {f"t{number}": table_wise(rank=0, compute_kernel="fused") for number in range(len(shape.rows))},
            sharder,
            local_size=1,
            world_size=1,
            device_type="cpu",
        )
        self.model = DistributedModelParallel(
            dlrm,
            device=torch.device("cpu"),
            plan=ShardingPlan({"sparse_arch.embedding_bag_collection": placed}),
            sharders=[sharder],
            init_data_parallel=not fast,
        )
        same = torch.Generator().manual_seed(2)
        for name, value in sorted(self.model.state_dict().items()):
            if "embedding_bags" in name:
                table = value.local_shards()[0].tensor
                table.uniform_(-((1 / len(table)) ** 0.5), (1 / len(table)) ** 0.5, generator=same)

        def dense_optimizer(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
            if optimizer == "sgd":
                return torch.optim.SGD(parameters, lr=dense_rate)
            # from zero, Adagrad's first step is the sign of the gradient, so any rounding would make curves differ
            return torch.optim.Adagrad(parameters, lr=dense_rate, initial_accumulator_value=0.1)

        parameters = dict(in_backward_optimizer_filter(self.model.named_parameters()))
        dense = KeyedOptimizerWrapper(parameters, dense_optimizer)
        self.optimizer = CombinedOptimizer([self.model.fused_optimizer, ("dense", dense)])
        self.loss = nn.BCEWithLogitsLoss()
        self.losses: list[float] = []
        self.milliseconds: list[float] = []

    def run(self, batches: list[Batch]) -> float:
        """The median milliseconds of a step over ``batches``."""
        for batch in batches:
            self.step(batch)
        return statistics.median(self.milliseconds[-len(batches) :])

    def step(self, batch: Batch) -> None:
        dense, sparse, labels = batch
        start = time.perf_counter()
        self.optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.fast):
            logits = self.model(dense, sparse)
        loss = self.loss(logits.squeeze(-1).float(), labels)
        loss.backward()
        self.optimizer.step()
        self.milliseconds.append(1e3 * (time.perf_counter() - start))
        self.losses.append(loss.item())


def compare(name: str, optimizer: str, *, batch_size: int, rounds: int, steps: int, warmup: int) -> float:
    """Prints one table, and returns the ratio of speeds."""
    shape = SHAPES[name]
    batches = synthetic_batches(shape, batch_size, warmup + rounds * steps)
    contenders = [Contender(shape, optimizer, fast=fast) for fast in (False, True)]
    position = 0
    medians: list[list[float]] = [[], []]
    for number in range(-1, rounds):
        length = warmup if number < 0 else steps
        for index in (0, 1) if number % 2 else (1, 0):
            medians[index].append(contenders[index].run(batches[position : position + length]))
        position += length
    base, fast = (values[1:] for values in medians)
    ratio = statistics.median(b / f for b, f in zip(base, fast, strict=True))

    print(f"\n{name}-like, {optimizer}, batch {batch_size}, {rounds} rounds of {steps} steps")
    for title, values in (("TorchRec float32", base), ("fast path", fast)):
        median = statistics.median(values)
        print(f"  {title:17s} {median:7.1f} ms/step  {1e3 * batch_size / median:8.0f} samples/s")
    each = " ".join(f"{b / f:.2f}" for b, f in zip(base, fast, strict=True))
    print(f"  speed-up          {ratio:7.2f}     (rounds {each})")
    curves = [torch.tensor(contender.losses) for contender in contenders]
    print("  mean loss of steps   TorchRec float32    fast path    difference")
    for first in range(0, position, -(-position // 8)):
        ours = slice(first, min(position, first + -(-position // 8)))
        theirs, mine = (curve[ours].mean().item() for curve in curves)
        print(f"  {ours.start:9d} - {ours.stop - 1:4d} {theirs:16.5f} {mine:14.5f} {mine - theirs:+13.5f}")
    gap = (curves[1] - curves[0]).abs()
    print(f"  |difference| of a step: mean {gap.mean():.1e}, max {gap.max():.1e}", flush=True)
    return ratio


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--optimizers", nargs="+", choices=RATES, default=list(RATES))
    parser.add_argument("--batch-size", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=10, help="steps of each contender per round")
    parser.add_argument(
        "--warmup", type=int, default=10, help="steps that are not timed, for compilation and first memory accesses"
    )
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    store = tempfile.NamedTemporaryFile()  # noqa: SIM115 (closed with the process)
    dist.init_process_group("gloo", init_method=f"file://{store.name}", rank=0, world_size=1)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}", flush=True)
    counts = {name: getattr(args, name) for name in ("batch_size", "rounds", "steps", "warmup")}
    ratios = {
        (shape, optimizer): compare(shape, optimizer, **counts)
        for shape in args.shapes
        for optimizer in args.optimizers
    }
    print("\nspeed-up: " + ", ".join(f"{shape}-like {kind} {ratio:.2f}" for (shape, kind), ratio in ratios.items()))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
