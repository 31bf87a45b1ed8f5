"""Trains the models of recipes on rows that lie in memory, and judges all of them by the same rows."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torchmetrics.functional.classification import binary_auroc
from torchrec.distributed.model_parallel import DistributedModelParallel

from dlrm_torchrec.datasets.batch import Batch
from dlrm_torchrec.datasets.block import joined
from dlrm_torchrec.datasets.jagged import to_batch
from dlrm_torchrec.datasets.numpy_columns import Columns
from dlrm_torchrec.datasets.stream import Ranks
from dlrm_torchrec.embeddings.initialize import initialize_tables
from dlrm_torchrec.recipe import load_training_recipe
from dlrm_torchrec.schema import DatasetSpec
from dlrm_torchrec.sharding.cluster.topology import live_topology
from dlrm_torchrec.sharding.config import ShardingConfig
from dlrm_torchrec.sharding.plan import make_plan
from dlrm_torchrec.train.metrics.auc import auc
from dlrm_torchrec.train.metrics.scores import predict
from dlrm_torchrec.train.optimizers import build_optimizer
from dlrm_torchrec.train.pipeline import train_pipeline
from dlrm_torchrec.train.schedule import ScheduledLearningRate
from dlrm_torchrec.train.task import RankingBatch
from dlrm_torchrec.train.world import World

BATCH_SIZE = 2048


@dataclass(frozen=True)
class Rows:
    """Rows with the probabilities that their labels were drawn from."""

    spec: DatasetSpec
    columns: Columns
    probabilities: NDArray[np.float64]  # (n,)

    def best_auc(self) -> float:
        """The AUC of the probabilities, the best that any model can expect."""
        return auc_of(self.probabilities, self.columns.labels)

    def batches(
        self, spec: DatasetSpec, order: NDArray[np.int64] | None = None, *, batch_size: int = BATCH_SIZE
    ) -> list[Batch]:
        """The rows in this order with the sparse features of ``spec``, some of those of the rows."""
        places = {feature.name: place for place, feature in enumerate(self.spec.sparse)}
        sparse = [self.columns.sparse[places[feature.name]] for feature in spec.sparse]
        dense = self.columns.dense if spec.dense else self.columns.dense[:, :0]
        columns = Columns(self.columns.labels, dense, sparse)
        order = np.arange(len(columns)) if order is None else order
        shares = Ranks(batch_size, 0, 1).shares(len(order), 0)
        return [
            to_batch(spec, [joined(columns, np.int64, order[first : first + share.num_rows])], share)
            for first, share in shares
        ]


def auc_of(scores: NDArray[np.float64], labels: NDArray[np.float32]) -> float:
    return binary_auroc(torch.from_numpy(scores), torch.from_numpy(labels).long(), validate_args=False).item()


def draw(random: np.random.Generator, probabilities: NDArray[np.float64]) -> NDArray[np.float32]:
    """A label for each probability."""
    return (random.random(len(probabilities)) < probabilities).astype(np.float32)


@dataclass(frozen=True)
class Fitted:
    """What training reached."""

    auc: dict[str, float]  # by the name of the rows that judged
    table_parameters: int
    dense_parameters: int
    samples_per_s: float


def fit(
    recipe: str,
    config: Any,
    train: Sequence[RankingBatch],
    judged: Mapping[str, Sequence[RankingBatch]],
    *,
    world: World,
) -> Fitted:
    """What the model of a recipe reaches on one thread with one step for each batch, from the weights of its seed.

    ``config.shape`` is the spec of all batches.
    """
    torch.set_num_threads(1)  # the models are so small that threads would mostly wait for each other
    torch.manual_seed(config.seed)
    task, tables = load_training_recipe(recipe).build(config, config.shape, world.size, world.device)
    sizes = [sum(each.numel() for each in module.parameters()) for module in (tables, task)]
    topology = live_topology(world.device, world_size=world.size, local_size=world.local_size)
    rows = train[0].num_rows
    plan = make_plan(task, tables, topology, ShardingConfig(), batch_size=rows, spec=config.shape, group=world.control)
    model = DistributedModelParallel(task, device=world.device, plan=plan, sharders=plan.sharders)
    initialize_tables(model, seed=config.seed)
    optimizer = build_optimizer(model, config.sparse, config.dense)
    learning_rate = ScheduledLearningRate(optimizer, config.schedule, len(train))
    pipeline, batches = train_pipeline(model, optimizer, world), iter(train)
    start = time.perf_counter()
    for step in range(len(train)):
        learning_rate.set(step)
        pipeline.progress(batches)
    seconds = time.perf_counter() - start
    found = {name: auc(predict(pipeline.detach(), each, world)) for name, each in judged.items()}
    return Fitted(found, sizes[0], sizes[1] - sizes[0], sum(batch.num_rows for batch in train) / seconds)


def spread(values: Sequence[float]) -> str:
    """Their mean and standard deviation.

    >>> spread([0.75, 0.77])
    '.7600 ± .0141'
    """
    deviation = stdev(values) if len(values) > 1 else 0.0
    return f"{mean(values):.4f} ± {deviation:.4f}".replace("0.", ".")
