"""Sharded compositional tables against the unsharded collection: every operation, sharding type and optimizer."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
import torch
import torch.distributed as dist
from torchrec.modules.embedding_configs import EmbeddingBagConfig, PoolingType
from torchrec.optim.optimizers import in_backward_optimizer_filter
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from dlrm_torchrec.embeddings.compositional.collection import CompositionalEmbeddingBagCollection
from dlrm_torchrec.embeddings.compositional.operations import Add, Concat, FeatureGeneration, Mult, Operation, Path
from dlrm_torchrec.embeddings.compositional.partitions.arithmetic import (
    ChineseRemainder,
    Hash,
    MixedRadix,
    QuotientRemainder,
)
from dlrm_torchrec.embeddings.compositional.partitions.assigned import Assigned
from dlrm_torchrec.embeddings.compositional.partitions.hashes import Hashes
from dlrm_torchrec.embeddings.compositional.partitions.hot_cold import HotCold
from dlrm_torchrec.embeddings.compositional.partitions.renumbered import Renumbered
from dlrm_torchrec.embeddings.compositional.partitions.together import Together
from dlrm_torchrec.embeddings.compositional.table_configs import CompositionalEmbeddingBagConfig
from dlrm_torchrec.embeddings.compositional.tensor_train import TensorTrain
from dlrm_torchrec.embeddings.compositional.thread_pool import thread_pool
from dlrm_torchrec.sharding.modules import composed_kernels
from dlrm_torchrec.sharding.modules.composed_shardings import offered_types
from dlrm_torchrec.sharding.modules.sharder import CHANGED_BY
from tests.distributed import run_ranks
from tests.sharding.sharded import ARGUMENTS, features, shard

IDS, DIM, BATCH, LONGEST = 95, 48, 6, 12
OPERATIONS = [
    Add(),
    Concat(),
    Mult(),
    Mult(center=1.0, spread=0.5),
    Path(hidden=8),
    Path(hidden=0),
    FeatureGeneration(),
    TensorTrain(rank=3),
]
FEATURES = {"of no table": 9, "f0": IDS, "f1": IDS, "f2": IDS, "f3": IDS, "f4": IDS, "f5": IDS, "f6": 50}


@dataclass(frozen=True)
class Case:
    """One collection and what it is trained with."""

    operation: Operation
    kind: str  # sharding type, or 'mixed' for another one per table
    pooling: PoolingType
    weighted: bool
    optimizer: type[torch.optim.Optimizer]


def configs(operation: Operation, pooling: PoolingType, weighted: bool) -> list[EmbeddingBagConfig]:
    """A table per kind of partition and a plain one; all kinds of tables share the feature f0."""
    clusters = torch.randint(0, 7, (IDS,), generator=torch.Generator().manual_seed(0))
    partitions = {
        "quotient_remainder": (QuotientRemainder(IDS, 4), ["f0", "f1"]),
        "chinese_remainder": (ChineseRemainder(IDS, (10, 11)), ["f2", "f0"]),
        "mixed_radix": (MixedRadix(IDS, (4, 3, 8)), ["f3"]),
        "hash": (Hash(IDS, 13), ["f4"]),
        "assigned": (Assigned.from_clusters(clusters), ["f5"]),
        "clusters": (Together((Assigned([clusters], complementary=False), Hash(IDS, 11, seed=1))), ["f4"]),
        "hot_cold": (HotCold(20, QuotientRemainder(IDS - 20, 9)), ["f1"]),
        "renumbered": (Renumbered(HotCold(7, QuotientRemainder(IDS, 9)), torch.arange(5, 75, 10)), ["f6"]),
    }
    if isinstance(operation, (Add, Concat)):
        partitions["hashes"] = (Hashes(IDS, 17, 2), ["f2"])
        partitions["hot_hashes"] = (HotCold(9, Hashes(IDS - 9, 17, 2), own_in_all=True), ["f3"])
    composed = [
        CompositionalEmbeddingBagConfig(
            name=name,
            num_embeddings=IDS,
            embedding_dim=DIM,
            feature_names=names,
            pooling=pooling,
            partition=partition,
            operation=operation,
        )
        for name, (partition, names) in partitions.items()
    ]
    plain = EmbeddingBagConfig(
        name="plain",
        num_embeddings=IDS,
        embedding_dim=DIM,
        feature_names=["f6", "f0"],
        pooling=PoolingType.SUM if weighted else pooling,  # PyTorch has no weighted mean
    )
    return [*composed[:2], plain, *composed[2:]]


def cases(operation: Operation) -> Iterator[Case]:
    """Every sharding type that the tables are offered, with each pooling and weights on and off.

    Each type meets both optimizers, unless one of them excludes it.
    """
    optimizers = list(ARGUMENTS)
    for pooling in (PoolingType.SUM, PoolingType.MEAN):
        stacked = configs(operation, pooling, weighted=False)[0].stacked()
        for kind in [*offered_types(stacked), "mixed"]:
            for weighted in (False, True):
                optimizer = optimizers[weighted ^ (pooling is PoolingType.MEAN)]
                yield Case(
                    operation, kind, pooling, weighted, torch.optim.SGD if kind in excluded(optimizer) else optimizer
                )


def excluded(optimizer: type[torch.optim.Optimizer]) -> list[str]:
    """Sharding types that would change an optimizer's arithmetic."""
    return CHANGED_BY.get(optimizer, ([], ""))[0]


def kinds(case: Case, tables: CompositionalEmbeddingBagCollection) -> dict[str, str]:
    """The sharding type of each table."""
    found = {}
    for number, config in enumerate(tables.physical_configs()):
        choices = [kind for kind in offered_types(config) if kind not in excluded(case.optimizer)]
        found[config.name] = choices[number % len(choices)] if case.kind == "mixed" else case.kind
    return found


def assert_equal(found: KeyedTensor, expected: KeyedTensor, place: str) -> None:
    assert sorted(found.keys()) == sorted(expected.keys())
    for key in sorted(expected.keys()):
        message = f"{place}, {key}: {{}}".format
        torch.testing.assert_close(found[key], expected[key], rtol=1e-4, atol=2e-5, msg=message)


def loss(output: KeyedTensor) -> torch.Tensor:
    return (output.values() - 1).square().sum() / BATCH


def compare(case: Case, hosts: int) -> None:
    """Train three steps and look up once more; AssertionError where sharded and unsharded tables differ."""
    ranks, rank = dist.get_world_size(), dist.get_rank()
    torch.manual_seed(1)
    reference = CompositionalEmbeddingBagCollection(configs(case.operation, case.pooling, case.weighted), case.weighted)
    model = shard(reference, kinds(case, reference), case.optimizer, hosts=hosts)
    arguments = ARGUMENTS[case.optimizer]
    optimizers = [case.optimizer(reference.parameters(), **arguments)]
    replicated = [parameter for _, parameter in in_backward_optimizer_filter(model.named_parameters())]
    if replicated:
        optimizers.append(case.optimizer(replicated, **arguments))
    start = [parameter.detach().clone() for parameter in reference.parameters()]
    for step in range(4):
        batches = [features(FEATURES, BATCH, LONGEST, case.weighted, 10 * step + r) for r in range(ranks)]
        all_expected = [reference(batch) for batch in batches]
        found = model(batches[rank]).wait()
        assert_equal(found, all_expected[rank], f"step {step}")
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss(found).backward()
        torch.stack([loss(output) / ranks for output in all_expected]).sum().backward()
        for optimizer in optimizers:
            optimizer.step()
    moved = [float((now.detach() - then).abs().max()) for now, then in zip(reference.parameters(), start, strict=True)]
    assert 1e-2 < min(moved) < max(moved) < 10, moved  # far above the tolerance


def compare_all(chosen: list[Case], hosts: int = 1, threads: int = 1) -> int:
    """Compares all cases, and returns their number."""
    torch.set_num_threads(threads)
    os.environ["LOCAL_WORLD_SIZE"] = str(dist.get_world_size() // hosts)
    for case in chosen:
        try:
            compare(case, hosts)
        except Exception as error:
            error.add_note(f"in {case}")
            raise
    assert (thread_pool.cache_info().currsize > 0) == (threads > 1)
    return len(chosen)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("family", [Add, Concat, FeatureGeneration, Mult, Path, TensorTrain])
def test_sharded_equals_unsharded(family: type[Operation], ranks: int) -> None:
    chosen = [case for operation in OPERATIONS if isinstance(operation, family) for case in cases(operation)]
    assert run_ranks(ranks, compare_all, chosen, timeout_s=60) == [len(chosen)] * ranks


def test_hosts_of_one_rank_each() -> None:
    """With one rank per host, types that place a table on a host see two hosts."""
    chosen = [
        case
        for operation in (Add(), Concat(), FeatureGeneration(), Mult(), Path(hidden=8), TensorTrain(rank=3))
        for case in cases(operation)
        if case.kind in ("table_row_wise", "table_column_wise", "grid_shard", "mixed")
    ]
    assert run_ranks(2, compare_all, chosen, 2, timeout_s=60) == [len(chosen)] * 2


def test_lookups_by_two_threads() -> None:
    chosen = [
        case
        for operation in OPERATIONS
        for case in cases(operation)
        if case.kind in ("table_wise", "mixed") and case.pooling is PoolingType.SUM
    ]
    assert run_ranks(1, compare_all, chosen, 1, 2, timeout_s=60) == [len(chosen)]


def test_ranks_of_two_threads_exchange_rows_in_one_order() -> None:
    chosen = [
        case for case in cases(Mult()) if case.kind in ("row_wise", "table_wise") and case.pooling is PoolingType.SUM
    ]
    assert run_ranks(2, compare_all, chosen, 1, 2, timeout_s=60) == [len(chosen)] * 2


def compare_without_sorted_updates(chosen: list[Case]) -> int:
    """With FBGEMM's kernels, which half-precision tables and those on a GPU have."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(composed_kernels, "can_sort", lambda _: False)
        return compare_all(chosen)


def test_fbgemm_kernels() -> None:
    chosen = [
        case for operation in OPERATIONS for case in cases(operation) if case.kind in ("table_wise", "column_wise")
    ]
    assert run_ranks(1, compare_without_sorted_updates, chosen, timeout_s=60) == [len(chosen)]


def test_columns_of_uneven_widths() -> None:
    """A rank has narrow shards of some tables and wide ones of others; TorchRec loads no two widths of one table."""
    chosen = [case for operation in OPERATIONS for case in cases(operation) if case.kind == "column_wise"]
    uneven = [replace(case, kind="uneven columns") for case in chosen]
    assert run_ranks(2, compare_all, uneven, timeout_s=60) == [len(uneven)] * 2


def unusual_batches(weighted: bool) -> dict[str, KeyedJaggedTensor]:
    """This rank's part of batches that have no ids, or only on one rank, or int32 ids, or one row."""
    rank = dist.get_rank()
    usual = features(FEATURES, BATCH, LONGEST, weighted, rank)
    empty = features(FEATURES, BATCH, 0, weighted, rank)
    int32 = KeyedJaggedTensor(usual.keys(), usual.values().int(), usual.weights_or_none(), usual.lengths().int())
    one_row = features(FEATURES, 1, LONGEST, weighted, rank)
    return {"empty": empty, "empty on rank 0": usual if rank else empty, "int32": int32, "one row": one_row}


def look_up_unusual_batches(chosen: list[Case]) -> None:
    for case in chosen:
        torch.manual_seed(1)
        reference = CompositionalEmbeddingBagCollection(
            configs(case.operation, case.pooling, case.weighted), case.weighted
        )
        model = shard(reference, kinds(case, reference), case.optimizer)
        for name, batch in unusual_batches(case.weighted).items():
            found = model(batch).wait()
            with torch.no_grad():
                assert_equal(model(batch).wait(), reference(batch), f"{name} of {case}")
            (0 * found.values()).sum().backward()  # a gradient that changes nothing, for the next batch's expectation


def test_unusual_batches() -> None:
    chosen = [case for operation in OPERATIONS for case in cases(operation) if case.kind == "mixed"]
    run_ranks(2, look_up_unusual_batches, chosen, timeout_s=60)
