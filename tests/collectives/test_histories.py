"""What a step of HSTU sends between two ranks: ids, their vectors, the gradients of these, and those of dense parts."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
import torch.distributed as dist
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.types import ShardingPlan

from dlrm_torchrec.datasets.sequences.open import open_sequences
from dlrm_torchrec.datasets.stream import Ranks
from dlrm_torchrec.sharding.modules.sequences.sharded import SequenceSharder
from dlrm_torchrec.train.config import OptimizerConfig
from dlrm_torchrec.train.timing.wire import Wire
from tests.distributed import run_ranks
from tests.recipe import load_recipe
from tests.sharding.sharded import hand_made_plan

CPU = torch.device("cpu")
FLOAT, LENGTH, ID, SPLITS = 4, 4, 8, 3 * 8  # bytes; how long three tensors are is told before they are sent


class Step(NamedTuple):
    """One step of one rank."""

    sent: list[int]  # bytes of each collective
    ids: list[list[int]]  # of each feature
    samples: int  # with those of padding
    dense: int  # numbers of dense parameters


def fourth_step(kind: str) -> Step:
    """That of a rank; DDP orders its buckets anew, and tells the other rank, in the third."""
    recipe = load_recipe("train_hstu")
    config = recipe.Config(rows=60, batch_size=16, sparse=OptimizerConfig(kind="sgd", lr=0.1))
    task, tables = recipe.build(config, config.shape, 2, CPU)
    plan = hand_made_plan(tables, {each.name: kind for each in tables.embedding_configs()})
    model = DistributedModelParallel(
        task, device=CPU, plan=ShardingPlan({"model.tables": plan}), sharders=[SequenceSharder(torch.optim.SGD)]
    )
    ranks = Ranks(config.batch_size, dist.get_rank(), 2)
    streams = open_sequences("synthetic", config.shape, ranks, config.samples, users=config.rows, epochs=1, seed=0)
    for batch, _ in zip(streams["train"].batches(), range(4), strict=False):
        with Wire() as wire:
            loss, _ = model(batch)
            loss.backward()
    ids = [each.values().tolist() for each in batch.sparse_features.to_dict().values()]
    dense = sum(each.numel() for name, each in model.named_parameters() if ".tables." not in name)
    return Step(wire.sent, ids, len(batch.lengths), dense)


@pytest.mark.parametrize("kind", ["table_wise", "row_wise"])
def test_bytes_of_a_step(kind: str) -> None:
    recipe = load_recipe("train_hstu")
    rows, dim = [feature.rows for feature in recipe.Config().shape.sparse], recipe.Config().dim

    def owner(feature: int, number: int) -> int:
        """The rank that has the row of an id."""
        return feature % 2 if kind == "table_wise" else number // -(-rows[feature] // 2)

    steps = run_ranks(2, fourth_step, kind, timeout_s=240)
    others = [  # ids whose rows the other rank has
        sum(owner(feature, number) != rank for feature, ids in enumerate(step.ids) for number in ids)
        for rank, step in enumerate(steps)
    ]
    for rank, step in enumerate(steps):
        features = len(rows) if kind == "row_wise" else len(rows[1 - rank :: 2])  # that the other rank reads
        ids = [SPLITS, LENGTH * features * step.samples, ID * others[rank]]
        assert step.sent[:4] == [*ids, FLOAT * dim * others[1 - rank]]
        assert sorted(step.sent[4:]) == sorted([FLOAT * dim * others[rank], FLOAT * step.dense])
    assert min(others) > 0
