"""Training speed on CPU: ``train_dlrm`` as it ships, against TorchRec in a bare loop and DLRM of plain PyTorch.

    python benchmarks/cpu_training.py                                  # both shapes, both optimizers; 9 GB of memory
    python benchmarks/cpu_training.py --shapes rm --optimizers sgd     # one of the four

Each contender trains a model in one process. All start from the same weights, see the same batches in the same order,
and take turns. The ratio of a round divides the contenders' median step times, and the reported ratio is the median
over rounds. The last lines of a comparison show how far the loss curves are apart.

- "recipe": the model, the speed, the plan and the pipeline of ``train_dlrm`` with no option of speed; it measures and
  chooses for itself, as a run of Criteo Kaggle's 45.8 million rows would
- "TorchRec": ``DistributedModelParallel`` with fused table-wise tables in float32
- "PyTorch": one ``nn.EmbeddingBag`` with sparse gradients for each table, as in facebookresearch/dlrm

The shape "kaggle" has the tables of Criteo Kaggle, capped at 100,000 rows; "rm" has 32 tables with 20 lookups per bag.
"""

from __future__ import annotations

import dlrm_torchrec.train  # noqa: F401  # before torch, as in a recipe: it says how threads wait

# isort: split
import argparse
import logging
import os
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace
from typing import Any, Literal, cast

import torch
from torch import nn
from torch.distributed.optim import _apply_optimizer_in_backward as apply_in_backward
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.sharding_plan import construct_module_sharding_plan, table_wise
from torchrec.distributed.types import EmbeddingModuleShardingPlan, ShardingPlan
from torchrec.models.dlrm import DLRM, DenseArch, InteractionArch, OverArch
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.optim import RowWiseAdagrad
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrm_torchrec.datasets.batch import Batch
from dlrm_torchrec.datasets.summary import Summary
from dlrm_torchrec.recipe import load_training_recipe
from dlrm_torchrec.schema import DatasetSpec, DenseFeature, SparseFeature
from dlrm_torchrec.sharding.cluster.topology import live_topology
from dlrm_torchrec.sharding.modules.fastest_update import processor, sorting_pays
from dlrm_torchrec.sharding.plan import make_plan
from dlrm_torchrec.train.config import OptimizerConfig
from dlrm_torchrec.train.optimizers import build_optimizer
from dlrm_torchrec.train.pipeline import train_pipeline
from dlrm_torchrec.train.speed import set_speed
from dlrm_torchrec.train.world import World, join_world

Kind = Literal["sgd", "rowwise_adagrad"]
DENSE = 13
ROWS = 45_840_617  # of Criteo Kaggle
RATES: dict[Kind, float] = {"sgd": 0.1, "rowwise_adagrad": 0.01}  # of the tables
DENSE_RATE, EPS = 0.1, 1e-8
# rows of Criteo Kaggle's 26 columns, capped at 100,000
KAGGLE_ROWS = [1460, 583, 100000, 100000, 305, 24, 12517, 633, 3, 93145, 5683, 100000, 3194]
KAGGLE_ROWS += [27, 14992, 100000, 10, 5652, 2173, 4, 100000, 18, 15, 100000, 105, 100000]
Step = Callable[[], torch.Tensor]  # trains on the next batch; the loss


@dataclass(frozen=True, kw_only=True)
class Shape:
    rows: list[int]
    dim: int
    lookups: int  # per bag
    bottom: list[int]
    top: list[int]

    def spec(self) -> DatasetSpec:
        sparse = [
            SparseFeature(name=f"f{i}", rows=rows, multi_hot=self.lookups > 1, pooling_factor=self.lookups)
            for i, rows in enumerate(self.rows)
        ]
        dense = tuple(DenseFeature(name=f"dense_{i}") for i in range(DENSE))
        return DatasetSpec(name="benchmark", label="click", dense=dense, sparse=tuple(sparse))


SHAPES = {
    "kaggle": Shape(rows=KAGGLE_ROWS, dim=16, lookups=1, bottom=[512, 256, 64, 16], top=[512, 256, 1]),
    "rm": Shape(rows=[200_000] * 32, dim=64, lookups=20, bottom=[256, 128, 64], top=[128, 64, 1]),
}


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
        features = KeyedJaggedTensor(
            keys=[f"f{table}" for table in range(tables)],
            values=torch.cat([bag.flatten() for bag in ids]),
            lengths=torch.full((tables * batch_size,), shape.lookups),
        )
        labels = torch.bernoulli(torch.sigmoid(logits), generator=generator)
        batches.append(Batch(dense, features, labels, batch_size, batch_size))
    return batches


def draw(table: torch.Tensor, name: str) -> None:
    """The initial weights of a table, the same for every contender."""
    generator = torch.Generator().manual_seed(2 + int(name.removeprefix("t")))
    table.data.uniform_(-((1 / len(table)) ** 0.5), (1 / len(table)) ** 0.5, generator=generator)


def draw_shards(model: nn.Module) -> None:
    for name, value in model.state_dict().items():
        if "embedding_bags" in name:
            draw(value.local_shards()[0].tensor, f"t{name.split('.')[-2].split('_f')[-1].removeprefix('t')}")


def recipe(shape: Shape, kind: Kind, batches: list[Batch], world: World) -> Step:
    """The recipe as it ships."""
    train_dlrm = load_training_recipe("train_dlrm")
    cfg = replace(
        train_dlrm.PRESETS["criteo-kaggle"],
        bottom=tuple(shape.bottom),
        top=tuple(shape.top),
        batch_size=batches[0].num_rows,
        sparse=OptimizerConfig(kind=kind, lr=RATES[kind], eps=EPS),
        dense=OptimizerConfig(kind="sgd", lr=DENSE_RATE),
        data="synthetic",
    )
    data = Summary(spec=shape.spec(), rows={"train": ROWS})
    torch.manual_seed(0)
    task, tables = train_dlrm.build(cfg, data.spec, world.size, world.device)
    log: Any = SimpleNamespace(world=world, say=partial(print, " "), note=lambda *_: None)
    speed = set_speed(
        cfg, task, log, data, kept=None, sorting_pays=partial(sorting_pays, tables, data.spec, cfg.batch_size)
    )
    topology = live_topology(world.device, world_size=1, local_size=1)
    plan = make_plan(task, tables, topology, cfg.sharding, speed=speed, batch_size=cfg.batch_size, spec=data.spec)
    model = DistributedModelParallel(
        task, device=world.device, plan=plan, sharders=plan.sharders, init_data_parallel=world.needs_ddp
    )
    draw_shards(model)
    pipeline = train_pipeline(model, build_optimizer(model, cfg.sparse, cfg.dense), world)
    stream: Any = iter(batches)

    def step() -> torch.Tensor:
        loss: torch.Tensor = pipeline.progress(stream)[0]
        return loss

    return step


def torchrec(shape: Shape, kind: Kind, batches: list[Batch], _world: World) -> Step:
    """TorchRec's own modules and sharder."""
    tables = EmbeddingBagCollection(
        device=torch.device("meta"),
        tables=[
            EmbeddingBagConfig(name=f"t{i}", num_embeddings=rows, embedding_dim=shape.dim, feature_names=[f"f{i}"])
            for i, rows in enumerate(shape.rows)
        ],
    )
    if kind == "sgd":
        apply_in_backward(torch.optim.SGD, tables.parameters(), {"lr": RATES[kind]})
    else:
        apply_in_backward(RowWiseAdagrad, tables.parameters(), {"lr": RATES[kind], "eps": EPS})
    torch.manual_seed(0)
    dlrm = DLRM(tables, DENSE, shape.bottom, shape.top, dense_device=torch.device("cpu"))
    sharder = cast(Any, EmbeddingBagCollectionSharder())
    placed: EmbeddingModuleShardingPlan = construct_module_sharding_plan(
        tables,
        {f"t{i}": table_wise(rank=0, compute_kernel="fused") for i in range(len(shape.rows))},
        sharder,
        local_size=1,
        world_size=1,
        device_type="cpu",
    )
    plan = ShardingPlan({"sparse_arch.embedding_bag_collection": placed})
    model = DistributedModelParallel(dlrm, device=torch.device("cpu"), plan=plan, sharders=[sharder])
    draw_shards(model)
    dense = torch.optim.SGD([p for n, p in model.named_parameters() if "embedding_bags" not in n], lr=DENSE_RATE)
    return partial(bare_step, lambda batch: model(batch.dense_features, batch.sparse_features), [dense], iter(batches))


class RowWiseSparseAdagrad(torch.optim.Optimizer):
    """Row-wise Adagrad of sparse gradients, in plain PyTorch."""

    def step(self) -> None:  # type: ignore[override]  # takes no closure
        for group in self.param_groups:
            for table in group["params"]:
                gradient = table.grad.coalesce()
                rows, values = gradient.indices()[0], gradient.values()
                moments = self.state[table].setdefault("moments", torch.zeros(len(table)))
                moments[rows] += values.square().mean(1)
                table.data.index_add_(0, rows, values / (moments[rows].sqrt() + EPS)[:, None], alpha=-group["lr"])


class PlainDLRM(nn.Module):
    """DLRM with TorchRec's dense parts and PyTorch's bags."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        bags = [nn.EmbeddingBag(rows, shape.dim, mode="sum", sparse=True, device="meta") for rows in shape.rows]
        self.bags = nn.ModuleList(bag.to_empty(device="cpu") for bag in bags)
        for i, bag in enumerate(bags):
            draw(bag.weight, f"t{i}")
        torch.manual_seed(0)
        self.bottom = DenseArch(DENSE, shape.bottom)
        interactions = shape.dim + (len(shape.rows) + 1) * len(shape.rows) // 2
        self.interaction, self.top = InteractionArch(len(shape.rows)), OverArch(interactions, shape.top)

    def forward(self, batch: Batch) -> torch.Tensor:
        ids = batch.sparse_features
        pooled = [bag(ids[f"f{i}"].values(), ids[f"f{i}"].offsets()[:-1]) for i, bag in enumerate(self.bags)]
        return cast(
            torch.Tensor, self.top(self.interaction(self.bottom(batch.dense_features), torch.stack(pooled, dim=1)))
        )


def pytorch(shape: Shape, kind: Kind, batches: list[Batch], _world: World) -> Step:
    """What facebookresearch/dlrm does."""
    model = PlainDLRM(shape)
    tables = list(model.bags.parameters())
    dense = torch.optim.SGD([p for n, p in model.named_parameters() if not n.startswith("bags")], lr=DENSE_RATE)
    sparse = (
        torch.optim.SGD(tables, lr=RATES[kind]) if kind == "sgd" else RowWiseSparseAdagrad(tables, {"lr": RATES[kind]})
    )
    return partial(bare_step, model, [dense, sparse], iter(batches))


def bare_step(
    model: Callable[[Batch], torch.Tensor], optimizers: list[torch.optim.Optimizer], batches: Iterator[Batch]
) -> torch.Tensor:
    batch = next(batches)
    for optimizer in optimizers:
        optimizer.zero_grad()
    loss = nn.functional.binary_cross_entropy_with_logits(model(batch).squeeze(-1), batch.labels)
    loss.backward()
    for optimizer in optimizers:
        optimizer.step()
    return loss.detach()


CONTENDERS = {"TorchRec": torchrec, "PyTorch": pytorch, "recipe": recipe}


def compare(name: str, kind: Kind, world: World, *, batch_size: int, rounds: int, steps: int, warmup: int) -> float:
    """Prints one table, and returns the ratio of the recipe's speed and TorchRec's."""
    print(f"\n{name}-like, {kind}, batch {batch_size}, {rounds} rounds of {steps} steps", flush=True)
    shape = SHAPES[name]
    batches = synthetic_batches(shape, batch_size, warmup + rounds * steps)
    contenders = {title: make(shape, kind, batches, world) for title, make in CONTENDERS.items()}
    medians: dict[str, list[float]] = {title: [] for title in contenders}
    losses: dict[str, list[float]] = {title: [] for title in contenders}
    position = 0
    for number in range(-1, rounds):
        length = warmup if number < 0 else steps
        order = list(contenders)
        for title in order if number % 2 else reversed(order):
            taken = []
            for _ in range(length):
                start = time.perf_counter()
                losses[title].append(contenders[title]().item())
                taken.append(1e3 * (time.perf_counter() - start))
            if number >= 0:
                medians[title].append(statistics.median(taken))
        position += length
    for title, values in medians.items():
        times = [theirs / ours for theirs, ours in zip(values, medians["recipe"], strict=True)]
        median = statistics.median(values)
        print(
            f"  {title:9s} {median:7.1f} ms/step {1e3 * batch_size / median:8.0f} samples/s; the recipe is "
            f"{statistics.median(times):5.2f} x as fast ({min(times):.2f} to {max(times):.2f})"
        )
    curves = {title: torch.tensor(each) for title, each in losses.items()}
    parts = range(0, position, -(-position // 6))
    for title, curve in curves.items():
        means = " ".join(f"{curve[first : first + parts.step].mean():.4f}" for first in parts)
        gap = (curve - curves["TorchRec"]).abs()
        print(f"  {title:9s} mean losses {means}; from TorchRec's {gap.mean():.1e} a step, at most {gap.max():.1e}")
    return statistics.median(b / f for b, f in zip(medians["TorchRec"], medians["recipe"], strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--optimizers", nargs="+", choices=RATES, default=list(RATES))
    parser.add_argument("--batch-size", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--steps", type=int, default=8, help="steps of each contender per round")
    parser.add_argument(
        "--warmup", type=int, default=8, help="steps that are not timed, for compilation and first memory accesses"
    )
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    counts = {name: getattr(args, name) for name in ("batch_size", "rounds", "steps", "warmup")}
    with join_world(seed=0) as world:
        load = os.getloadavg()[0]
        print(f"{processor()}, torch {torch.__version__}, {torch.get_num_threads()} threads, load {load:.1f}")
        ratios = {
            (shape, kind): compare(shape, kind, world, **counts) for shape in args.shapes for kind in args.optimizers
        }
    print("\nspeed-up: " + ", ".join(f"{shape}-like {kind} {ratio:.2f}" for (shape, kind), ratio in ratios.items()))


if __name__ == "__main__":
    main()
