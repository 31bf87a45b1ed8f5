"""A recipe's model, sharded and trained step by step, and the same model unsharded on the CPU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.types import ShardedTensor

from dlrm_torchrec.datasets.batch import Batch
from dlrm_torchrec.datasets.sequences.batch import SequenceBatch
from dlrm_torchrec.datasets.summary import Summary
from dlrm_torchrec.embeddings.initialize import initialize_tables
from dlrm_torchrec.recipe import TrainingRecipe
from dlrm_torchrec.sharding.cluster.topology import live_topology
from dlrm_torchrec.sharding.modules.fastest_update import sorting_pays
from dlrm_torchrec.sharding.node_local import Nodes
from dlrm_torchrec.sharding.plan import Plan, make_plan
from dlrm_torchrec.train.config import Speed
from dlrm_torchrec.train.optimizers import CLASSES, arguments_of, build_optimizer
from dlrm_torchrec.train.speed import set_speed
from dlrm_torchrec.train.world import World

from .shapes import full_batch

CPU = torch.device("cpu")
STEPS = 6
Weights = dict[str, torch.Tensor]  # by name
AnyBatch = Batch | SequenceBatch


class Trainer:
    """The model of a recipe's config, planned and sharded as the recipe does it."""

    def __init__(
        self,
        recipe: TrainingRecipe,
        cfg: Any,
        world: World,
        *,
        speed: Speed = ("exact",),
        kernel: str = "",
        nodes: Nodes | None = None,
    ) -> None:
        """Shards and initialises the model.

        Args:
            recipe: a training recipe
            cfg: its config, with synthetic data
            world: one rank
            speed: how the model computes; auto measures
            kernel: the kernel of all tables in place of the planned one; only a GPU has others
            nodes: nodes with tables of their own; None: all ranks share them
        """
        task, self.tables = recipe.build(cfg, cfg.shape, world.size, world.device)
        log: Any = SimpleNamespace(world=world, say=print, note=lambda *_: None)
        sorting = partial(sorting_pays, self.tables, cfg.shape, cfg.batch_size)
        self.speed = set_speed(
            replace(cfg, speed=speed), task, log, Summary(spec=cfg.shape), kept=None, sorting_pays=sorting
        )
        common = {"batch_size": cfg.batch_size, "spec": cfg.shape, "group": world.control}
        if nodes is None:
            topology = live_topology(world.device, world_size=world.size, local_size=world.local_size)
            plan = make_plan(task, self.tables, topology, cfg.sharding, speed=self.speed, **common)
        else:
            plan = nodes.plan(task, self.tables, cfg.sharding, speed=self.speed, **common)
        if kernel and world.device.type == "cuda":
            _use_kernel(plan, kernel)
        if nodes is None:
            self.model = DistributedModelParallel(
                task, device=world.device, plan=plan, sharders=plan.sharders, init_data_parallel=world.needs_ddp
            )
        else:
            self.model = nodes.shard(task, plan, init_data_parallel=world.needs_ddp)
        initialize_tables(self.model, seed=0)
        self.optimizer = build_optimizer(self.model, cfg.sparse, cfg.dense)

    def step(self, batch: AnyBatch) -> torch.Tensor:
        """Train on a batch that lies on the device; the loss."""
        self.optimizer.zero_grad()
        loss, _ = self.model(batch)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def steps(self, batches: Iterator[AnyBatch], number: int) -> None:
        """Train on the next ``number`` batches."""
        for _ in range(number):
            self.step(next(batches))

    def weights(self) -> Weights:
        """Copies of all weights, whole, in float32, on the CPU."""
        return {name: _whole(value) for name, value in self.model.state_dict().items()}


class Reference:
    """The same model, unsharded on the CPU in float32, with torch's optimizers over gradients of whole tables.

    An optimizer in backward leaves rows alone that a batch does not touch, so Adam is the same only if none are left.
    """

    def __init__(self, recipe: TrainingRecipe, cfg: Any, weights: Weights) -> None:
        cfg = replace(cfg, tables=replace(cfg.tables, data_type="fp32"))
        self.model, _ = recipe.build(cfg, cfg.shape, 1, CPU)
        self.model.load_state_dict({name: value.clone() for name, value in weights.items()}, assign=True)
        named = dict(self.model.named_parameters())
        tables = [value for name, value in named.items() if _of_table(name)]
        dense = [value for name, value in named.items() if not _of_table(name)]
        pairs = ((tables, cfg.sparse), (dense, cfg.dense))
        self.optimizers = [CLASSES[each.kind](values, **arguments_of(each)) for values, each in pairs]

    def step(self, batch: AnyBatch) -> torch.Tensor:
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        loss, _ = self.model(batch)
        loss.backward()
        for optimizer in self.optimizers:
            optimizer.step()
        return loss.detach()

    def weights(self) -> Weights:
        return {name: value.detach().clone() for name, value in self.model.state_dict().items()}


def small_batches(cfg: Any) -> list[Batch]:
    return [full_batch(cfg.shape, cfg.batch_size, seed) for seed in range(STEPS)]


def apart(found: Sequence[float], expected: Sequence[float]) -> float:
    """The largest relative difference; infinite if a loss is no number."""
    differences = [abs(a - b) / abs(b) for a, b in zip(found, expected, strict=True)]
    return max(each if each == each else float("inf") for each in differences)


def astray(found: Weights, expected: Weights, start: Weights) -> float:
    """How far a tensor ended from where it should, over its way from the start: 1 if it did not move, for the worst."""
    ways = {name: float((expected[name] - start[name]).norm()) for name in expected}
    assert all(ways.values()), "every tensor must move"
    return max(float((found[name] - expected[name]).norm()) / way for name, way in ways.items())


def _of_table(name: str) -> bool:
    """Whether this is the name of a table's weight: of one that pools, or of one of single ids."""
    return ".embedding_bags." in name or ".embeddings." in name


def _use_kernel(plan: Plan, kernel: str) -> None:
    for module in plan.plan.values():
        for table in module.values():
            table.compute_kernel = kernel


def _whole(value: torch.Tensor | ShardedTensor) -> torch.Tensor:
    if not isinstance(value, ShardedTensor):
        return value.detach().float().cpu().clone()
    whole = torch.empty(value.metadata().size)
    for shard in value.local_shards():
        (row, column), (rows, columns) = shard.metadata.shard_offsets, shard.metadata.shard_sizes
        whole[row : row + rows, column : column + columns] = shard.tensor.detach().float().cpu()
    return whole
