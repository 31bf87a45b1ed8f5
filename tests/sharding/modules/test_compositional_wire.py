"""What compositional tables send between two ranks, against a plain table of equal dim; quantised comms."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrm_torchrec.embeddings.compositional.collection import CompositionalEmbeddingBagCollection
from dlrm_torchrec.embeddings.compositional.operations import Add, Concat, FeatureGeneration, Mult, Operation, Path
from dlrm_torchrec.embeddings.compositional.partitions.arithmetic import (
    ChineseRemainder,
    Hash,
    QuotientRemainder,
)
from dlrm_torchrec.embeddings.compositional.partitions.base import Partition
from dlrm_torchrec.embeddings.compositional.partitions.hashes import Hashes
from dlrm_torchrec.embeddings.compositional.partitions.hot_cold import HotCold
from dlrm_torchrec.embeddings.compositional.table_configs import CompositionalEmbeddingBagConfig
from dlrm_torchrec.sharding.config import CommsConfig, Precision
from dlrm_torchrec.sharding.modules.comms import codecs
from dlrm_torchrec.sharding.modules.composed_shardings import offered_types
from tests.distributed import run_ranks
from tests.sharding.sharded import features, shard
from tests.wire import traffic

IDS, DIM, BATCH = 1000, 96, 16
FEATURES = {"f": IDS, "g": IDS}


QUOTIENTS = QuotientRemainder(IDS, 30)


class Case(NamedTuple):
    operation: Operation | None  # None: a plain table
    kind: str
    weighted: bool = False
    precision: Precision = "fp32"
    partition: Partition = QUOTIENTS


Sent = tuple[list[int], ...]  # bytes of every collective of ids, of vectors and of gradients


def collection(
    operation: Operation | None, weighted: bool, partition: Partition = QUOTIENTS
) -> CompositionalEmbeddingBagCollection:
    """One table of two features."""
    torch.manual_seed(0)
    plain = EmbeddingBagConfig(name="t", num_embeddings=IDS, embedding_dim=DIM, feature_names=list(FEATURES))
    composed = CompositionalEmbeddingBagConfig(
        name="t",
        num_embeddings=IDS,
        embedding_dim=DIM,
        feature_names=list(FEATURES),
        partition=partition,
        operation=operation or Add(),
    )
    return CompositionalEmbeddingBagCollection([composed if operation else plain], weighted)


def batch(weighted: bool) -> KeyedJaggedTensor:
    """The same on all ranks."""
    return features(FEATURES, BATCH, longest=5, weighted=weighted, seed=0)


def counted(cases: list[Case]) -> list[Sent]:
    """What this rank sent for each case."""
    found = []
    for case in cases:
        tables = collection(case.operation, case.weighted, case.partition)
        model = shard(tables, {"t": case.kind}, qcomm_codecs_registry=both_ways(case.precision))
        found.append(tuple(traffic(model.module.tables, batch(case.weighted))))
    return found


def both_ways(precision: Precision) -> dict[str, Any] | None:
    """Codecs for the narrowest shard of the tables below."""
    return codecs(CommsConfig(forward=precision, backward=precision), [DIM // 2 // 3])


OPERATIONS = [None, Add(), Concat(), Mult(), Path(hidden=8), FeatureGeneration()]
OWNER_TYPES, SENDER_TYPES = (
    ["table_wise", "column_wise", "table_column_wise"],
    ["row_wise", "table_row_wise", "grid_shard"],
)
LATER: list[tuple[Operation, Partition]] = [  # hot and cold ids, and several hashes into the same rows
    (Mult(), HotCold(100, ChineseRemainder(900, (31, 30)))),
    (Add(), HotCold(100, Hash(900, 50))),
    (Add(), Hashes(IDS, 100, 2)),
    (Concat(), Hashes(IDS, 100, 2)),
]
CASES = [
    *(
        Case(operation, kind, weighted, partition=partition)
        for operation, partition in LATER
        for kind in OWNER_TYPES
        for weighted in (False, True)
    ),
    *(
        Case(operation, kind, weighted)
        for operation in OPERATIONS
        for kind in offered_types(collection(operation, weighted=False).physical_configs()[0])
        for weighted in (False, True)
    ),
    *(Case(Add(), kind, precision="fp16") for kind in ("table_wise", "row_wise")),
]


@pytest.fixture(scope="module")
def by_rank() -> list[dict[Case, Sent]]:
    return [dict(zip(CASES, found, strict=True)) for found in run_ranks(2, counted, CASES, timeout_s=60)]


@pytest.fixture(scope="module")
def sent(by_rank: list[dict[Case, Sent]]) -> dict[Case, Sent]:
    """The bytes that both ranks send together."""
    first, second = by_rank
    return {
        case: tuple([a + b for a, b in zip(*both, strict=True)] for both in zip(first[case], second[case], strict=True))
        for case in CASES
    }


def test_plain_tables_send_what_is_computed_by_hand(by_rank: list[dict[Case, Sent]]) -> None:
    """A table on rank 0, and one with its rows on both ranks."""
    ids = batch(weighted=False)
    splits = 3 * 8  # for the other rank: the number of lengths, the number of ids, the batch size
    lengths, values, vectors = 8 * 2 * BATCH, 8 * len(ids.values()), 4 * BATCH * 2 * DIM
    upper = 8 * int((ids.values() >= IDS // 2).sum())
    on_owner, on_both, replicated = (
        [found[Case(None, kind)] for found in by_rank] for kind in ("table_wise", "row_wise", "data_parallel")
    )
    assert on_owner == [([splits, 0, 0], [vectors], [0]), ([splits, lengths, values], [0], [vectors])]
    assert on_both == [
        ([splits, lengths, upper], [vectors], [vectors]),  # reduce-scatter, then all-gather
        ([splits, lengths, values - upper], [vectors], [vectors]),
    ]
    assert replicated[0][:2] == ([], [])
    assert replicated[0][2][-1] == 4 * IDS * DIM  # 2 (n - 1) / n of the table


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", OWNER_TYPES)
def test_composed_on_the_owner_sends_what_a_plain_table_does(sent: dict[Case, Sent], kind: str, weighted: bool) -> None:
    plain = sent[Case(None, kind, weighted)]
    assert min(map(sum, plain)) > 0
    composed = [case for case in CASES if case.operation and case[1:3] == (kind, weighted) and case.precision == "fp32"]
    assert len(composed) == len(LATER) + (5 if kind == "table_wise" else 4)  # a path has no column shards
    for case in composed:
        outputs = 2 if isinstance(case.operation, FeatureGeneration) else 1  # it gives two vectors for one
        assert ratios(plain, sent[case]) == [[1] * len(plain[0]), [outputs], [outputs]], case


def test_replicated_tables_send_the_gradients_of_their_few_rows(sent: dict[Case, Sent]) -> None:
    plain, composed = (sent[Case(operation, "data_parallel")] for operation in (None, Mult()))
    assert composed[:2] == plain[:2] == ([], [])
    assert composed[2][-1] / plain[2][-1] == (34 + 30) / IDS


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", SENDER_TYPES)
def test_products_of_spread_rows_send_what_a_plain_table_does_and_the_rows_of_remainders(
    sent: dict[Case, Sent], kind: str, weighted: bool
) -> None:
    plain, composed = (sent[Case(operation, kind, weighted)] for operation in (None, Mult()))
    remainders = 2 * 4 * 30 * DIM  # an all-reduce between two ranks sends them once from each
    assert composed[0] == plain[0]
    for ours, theirs in zip(composed[1:], plain[1:], strict=True):
        assert sorted(ours) == sorted([*theirs, remainders])


@pytest.mark.parametrize("kind", SENDER_TYPES)
def test_composed_on_the_sender_sends_an_id_k_times_and_a_vector_once(sent: dict[Case, Sent], kind: str) -> None:
    """k = 2; splits, lengths, ids, weights; vectors; gradients. Concat and feature generation have k bags for one."""
    plain = sent[Case(None, kind, weighted=True)]
    found = {
        type(operation): ratios(plain, sent[Case(operation, kind, weighted=True)])
        for operation in (Add(), Concat(), FeatureGeneration())
    }
    assert found == {
        Add: [[1, 1, 2, 2], [1], [1]],
        Concat: [[1, 2, 2, 2], [1], [1]],
        FeatureGeneration: [[1, 2, 2, 2], [2], [2]],
    }


@pytest.mark.parametrize("kind", ["table_wise", "row_wise"])
def test_fp16_halves_vectors_and_gradients(sent: dict[Case, Sent], kind: str) -> None:
    whole, half = sent[Case(Add(), kind)], sent[Case(Add(), kind, precision="fp16")]
    assert ratios(whole, half) == [[1, 1, 1], [0.5], [0.5]]


def ratios(plain: Sent, other: Sent) -> list[list[float]]:
    return [[b / a for a, b in zip(*both, strict=True)] for both in zip(plain, other, strict=True)]


QUANTISED = [
    (Mult(), "table_wise"),
    (Path(hidden=8), "table_wise"),
    (Concat(), "column_wise"),
    (Mult(), "table_column_wise"),
    (Add(), "row_wise"),
    (Concat(), "table_row_wise"),
    (FeatureGeneration(), "grid_shard"),
]


def quantised(precision: Precision, cases: list[tuple[Operation, str]]) -> None:
    """AssertionError where vectors, or updates of weights, differ from unquantised ones by more than the codec."""
    step = {"fp16": 2.0**-10, "int8": 2.0**-7}[precision]  # of the largest number of a row
    for operation, kind in cases:
        tables = collection(operation, weighted=False)
        exact, lossy = (
            shard(tables, {"t": kind}, qcomm_codecs_registry=found) for found in (None, both_ways(precision))
        )
        before = [weight.clone() for weight in local_weights(exact)]
        outputs = [model(batch(weighted=False)).wait().values() for model in (exact, lossy)]
        assert 0 < largest(outputs[1] - outputs[0]) <= step * largest(outputs[0]), (operation, kind)
        for output in outputs:
            (output - 1).square().sum().backward()
        for old, new, rounded in zip(before, local_weights(exact), local_weights(lossy), strict=True):
            assert 0 < largest(rounded - new) <= 4 * step * largest(new - old), (operation, kind)


def local_weights(model: DistributedModelParallel) -> list[torch.Tensor]:
    (table,) = model.module.tables.state_dict().values()
    return [shard.tensor.detach() for shard in table.local_shards()]


def largest(values: torch.Tensor) -> float:
    return float(values.detach().abs().max())


@pytest.mark.parametrize(
    ("precision", "cases"),
    [
        ("fp16", QUANTISED),
        ("int8", QUANTISED[:4]),  # a sum of int8 numbers with scales of their own is none
    ],
)
def test_quantised_comms_stay_within_their_precision(precision: Precision, cases: list[tuple[Operation, str]]) -> None:
    run_ranks(2, quantised, precision, cases, timeout_s=60)
