"""Concurrent lookups against TorchRec's own sharded collection, over every sharding type, one and two ranks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.optim import _apply_optimizer_in_backward as apply_in_backward
from torchrec.distributed.embedding_types import EmbeddingComputeKernel
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.sharding_plan import (
    column_wise,
    construct_module_sharding_plan,
    data_parallel,
    row_wise,
    table_row_wise,
    table_wise,
)
from torchrec.distributed.types import EmbeddingModuleShardingPlan, ShardingPlan
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.optim import RowWiseAdagrad
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrm_torchrec.sharding.modules.concurrent import (
    ConcurrentSharder,
    concurrently,
    deal,
)
from tests.distributed import run_ranks

TABLES, ROWS, DIM, BATCH = 5, 40, 8, 6


def build_sharded(
    tables: EmbeddingBagCollection, kind: str, sharder: EmbeddingBagCollectionSharder
) -> DistributedModelParallel:
    ranks = dist.get_world_size()
    generators: dict[str, Callable[[int], Callable[..., Any]]] = {
        "table_wise": lambda i: table_wise(rank=i % ranks),
        "column_wise": lambda i: column_wise(ranks=[i % ranks, (i + 1) % ranks]),
        "row_wise": lambda _: row_wise(),
        "table_row_wise": lambda _: table_row_wise(host_index=0),
        "data_parallel": lambda _: data_parallel(),
    }
    mixed = ["data_parallel", "row_wise", "row_wise", "table_wise", "table_wise"]
    plan: EmbeddingModuleShardingPlan = construct_module_sharding_plan(
        tables,
        {f"t{i}": generators[mixed[i] if kind == "mixed" else kind](i) for i in range(TABLES)},
        sharder,
        local_size=ranks,
        world_size=ranks,
        device_type="cpu",
    )
    for placed in plan.values():
        if placed.sharding_type != "data_parallel":
            placed.compute_kernel = EmbeddingComputeKernel.FUSED.value
    return DistributedModelParallel(
        Pooled(tables), device=torch.device("cpu"), plan=ShardingPlan({"tables": plan}), sharders=[sharder]
    )


class Pooled(nn.Module):
    def __init__(self, tables: EmbeddingBagCollection) -> None:
        super().__init__()
        self.tables = tables

    def forward(self, features: KeyedJaggedTensor) -> torch.Tensor:
        pooled = self.tables(features)
        return torch.cat([pooled[key] for key in sorted(pooled.keys())], dim=1)


def train(sharder: EmbeddingBagCollectionSharder, kind: str, weighted: bool) -> list[torch.Tensor]:
    """The pooled embeddings of three steps and of one without gradients, then all local shards' weights."""
    tables = EmbeddingBagCollection(
        is_weighted=weighted,
        device=torch.device("meta"),
        tables=[
            EmbeddingBagConfig(name=f"t{i}", num_embeddings=ROWS + i, embedding_dim=DIM, feature_names=names)
            for i, names in enumerate([["f0"], ["f1", "f5"], ["f2"], ["f3"], ["f4"]])
        ],
    )
    apply_in_backward(RowWiseAdagrad, tables.parameters(), {"lr": 0.1, "eps": 1e-8})
    model = build_sharded(tables, kind, sharder)
    lookups = max(len(getattr(lookup, "grouped_configs", [])) for lookup in model.module.tables._lookups)
    assert (lookups > 1) == (type(sharder) is ConcurrentSharder and kind != "data_parallel")
    shards = [
        shard
        for value in model.state_dict().values()
        for shard in ([s.tensor for s in value.local_shards()] if hasattr(value, "local_shards") else [value])
    ]
    with torch.no_grad():
        for number, shard in enumerate(shards):
            shard.copy_(torch.rand(shard.shape, generator=torch.Generator().manual_seed(number)))
    generator = torch.Generator().manual_seed(dist.get_rank())
    seen = []
    for step in range(4):
        lengths = torch.randint(0, 4, (6 * BATCH,), generator=generator)
        total = int(lengths.sum())
        ids = torch.randint(0, ROWS, (total,), generator=generator)
        weights = torch.rand(total, generator=generator) if weighted else None
        features = KeyedJaggedTensor(keys=[f"f{i}" for i in range(6)], values=ids, lengths=lengths, weights=weights)
        with torch.set_grad_enabled(step < 3):
            pooled = model(features)
        if step < 3:
            pooled.square().sum().backward()
        seen.append(pooled.detach().clone())
    return [*seen, *(shard.detach().clone() for shard in shards)]


def compare(kind: str, weighted: bool) -> list[bool]:
    torch.set_num_threads(3)
    ours, theirs = (
        train(sharder, kind, weighted) for sharder in (ConcurrentSharder(), EmbeddingBagCollectionSharder())
    )
    return [torch.equal(a, b) for a, b in zip(ours, theirs, strict=True)]


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize(
    ("kind", "weighted"),
    [
        ("table_wise", False),
        ("table_wise", True),
        ("column_wise", False),
        ("row_wise", False),
        ("table_row_wise", False),
        ("data_parallel", False),
        ("mixed", False),
    ],
)
def test_equals_torchrec_bit_for_bit(ranks: int, kind: str, weighted: bool) -> None:
    for equal in run_ranks(ranks, compare, kind, weighted):
        assert len(equal) > 4
        assert all(equal)


def lookups_per_thread_count(threads: int) -> int:
    torch.set_num_threads(threads)
    tables = EmbeddingBagCollection(
        device=torch.device("meta"),
        tables=[
            EmbeddingBagConfig(name=f"t{i}", num_embeddings=ROWS, embedding_dim=DIM, feature_names=[f"f{i}"])
            for i in range(TABLES)
        ],
    )
    model = build_sharded(tables, "table_wise", ConcurrentSharder())
    (lookup,) = model.module.tables._lookups
    return len(lookup.grouped_configs)


@pytest.mark.parametrize(("threads", "lookups"), [(1, 1), (2, 2), (4, 4), (8, 5)])
def test_one_lookup_per_thread(threads: int, lookups: int) -> None:
    assert run_ranks(1, lookups_per_thread_count, threads) == [lookups]


def test_deal_covers_all_parts_in_order_and_about_evenly() -> None:
    generator = torch.Generator().manual_seed(0)
    for parts in (1, 2, 3, 7):
        work = torch.randint(1, 100, (60,), generator=generator).tolist()
        dealt = deal(work, parts)
        assert dealt == sorted(dealt)
        assert set(dealt) == set(range(parts))
        sums = [sum(item for item, part in zip(work, dealt, strict=True) if part == wanted) for wanted in range(parts)]
        assert max(abs(total - sum(work) / parts) for total in sums) <= max(work)


def test_concurrent_functions_run_forward_and_backward_like_plain_ones() -> None:
    leaves = [torch.randn(3, dtype=torch.float64, requires_grad=True) for _ in range(5)]
    outputs = concurrently([partial(torch.mul, leaf, i + 1) for i, leaf in enumerate(leaves)])
    torch.stack([(i + 2) * output.sum() for i, output in enumerate(outputs[:4])]).sum().backward()
    for i, leaf in enumerate(leaves):
        assert torch.equal(outputs[i], leaf * (i + 1))
        assert leaf.grad is not None
        assert torch.equal(leaf.grad, torch.full((3,), float((i + 1) * (i + 2)) if i < 4 else 0.0).double())


def test_an_error_in_a_thread_reaches_the_caller() -> None:
    def fail() -> torch.Tensor:
        raise RuntimeError("bad id")

    with pytest.raises(RuntimeError, match="bad id"):
        concurrently([lambda: torch.ones(1), fail])
