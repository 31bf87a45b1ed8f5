"""What tables of single ids send between two ranks, against a plain table of equal dim."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.modules.embedding_configs import EmbeddingConfig
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrm_torchrec.embeddings.compositional.operations import Add, Concat, Mult, Operation, Path
from dlrm_torchrec.embeddings.compositional.partitions.arithmetic import QuotientRemainder
from dlrm_torchrec.embeddings.compositional.partitions.base import Partition
from dlrm_torchrec.embeddings.compositional.partitions.hashes import Hashes
from dlrm_torchrec.embeddings.compositional.sequences import CompositionalEmbeddingCollection
from dlrm_torchrec.embeddings.compositional.table_configs import CompositionalEmbeddingConfig
from dlrm_torchrec.embeddings.compositional.tensor_train import TensorTrain
from dlrm_torchrec.sharding.config import CommsConfig, Precision
from dlrm_torchrec.sharding.modules.comms import codecs
from dlrm_torchrec.sharding.modules.composed_shardings import SEQUENCE_TYPES, offered_types
from tests.distributed import run_ranks
from tests.sharding.sharded import features, shard
from tests.wire import Traffic, traffic

IDS, DIM, BATCH, REMAINDERS = 1000, 96, 16, 30
FEATURES = {"f": IDS, "g": IDS}
QUOTIENTS = QuotientRemainder(IDS, REMAINDERS)


class Case(NamedTuple):
    operation: Operation | None  # None: a plain table
    kind: str
    partition: Partition = QUOTIENTS


def collection(operation: Operation | None, partition: Partition = QUOTIENTS) -> CompositionalEmbeddingCollection:
    """One table of two features."""
    torch.manual_seed(0)
    plain = EmbeddingConfig(name="t", num_embeddings=IDS, embedding_dim=DIM, feature_names=list(FEATURES))
    composed = CompositionalEmbeddingConfig(
        name="t",
        num_embeddings=IDS,
        embedding_dim=DIM,
        feature_names=list(FEATURES),
        partition=partition,
        operation=operation or Add(),
    )
    return CompositionalEmbeddingCollection([composed if operation else plain])


COMPOSED: list[tuple[Operation, Partition]] = [
    *((operation, QUOTIENTS) for operation in (Add(), Concat(), Mult(), Path(hidden=8), TensorTrain(rank=2))),
    (Add(), Hashes(IDS, 100, 2)),
    (Concat(), Hashes(IDS, 100, 2)),
]
CASES = [
    *(Case(None, kind) for kind in SEQUENCE_TYPES),
    *(
        Case(operation, kind, partition)
        for operation, partition in COMPOSED
        for kind in offered_types(collection(operation, partition).physical_configs()[0])
    ),
]


def batch() -> KeyedJaggedTensor:
    """The same on all ranks."""
    return features(FEATURES, BATCH, longest=5, weighted=False, seed=0)


def counted(cases: list[Case]) -> list[Traffic]:
    """What this rank sent for each case."""
    found = []
    for case in cases:
        model = shard(collection(case.operation, case.partition), {"t": case.kind})
        found.append(traffic(model.module.tables, batch()))
    return found


@pytest.fixture(scope="module")
def by_rank() -> list[dict[Case, Traffic]]:
    return [dict(zip(CASES, found, strict=True)) for found in run_ranks(2, counted, CASES, timeout_s=60)]


def test_plain_tables_send_each_id_once_and_its_vector_once(by_rank: list[dict[Case, Traffic]]) -> None:
    """A table on rank 0, and one with its rows on both ranks, as computed by hand."""
    ids = batch().values()
    splits, lengths, upper = 3 * 8, 8 * 2 * BATCH, int((ids >= IDS // 2).sum())
    on_owner, on_both = ([found[Case(None, kind)] for found in by_rank] for kind in ("table_wise", "row_wise"))
    vector = 4 * DIM
    assert on_owner == [
        ([splits, 0, 0], [vector * len(ids)], [0]),
        ([splits, lengths, 8 * len(ids)], [0], [vector * len(ids)]),
    ]
    lower = len(ids) - upper
    assert on_both == [
        ([splits, lengths, 8 * upper], [vector * lower], [vector * upper]),
        ([splits, lengths, 8 * lower], [vector * upper], [vector * lower]),
    ]


def total(by_rank: list[dict[Case, Traffic]], case: Case) -> list[list[int]]:
    """The bytes of each collective of both ranks together."""
    pairs = zip(*(found[case] for found in by_rank), strict=True)
    return [[a + b for a, b in zip(*both, strict=True)] for both in pairs]


@pytest.mark.parametrize("kind", ["table_wise", "column_wise"])
def test_composed_on_the_owner_sends_what_a_plain_table_does(by_rank: list[dict[Case, Traffic]], kind: str) -> None:
    composed = [case for case in CASES if case.operation is not None and case.kind == kind]
    assert len(composed) == (len(COMPOSED) if kind == "table_wise" else 3)  # add twice, and mult
    for case in composed:
        assert total(by_rank, case) == total(by_rank, Case(None, kind)), case


def test_spread_rows_send_what_a_plain_table_does_and_the_rows_of_remainders(
    by_rank: list[dict[Case, Traffic]],
) -> None:
    """An all-reduce between two ranks sends these rows once from each; a network of a path has 18 rows, a core 2."""
    plain = total(by_rank, Case(None, "row_wise"))
    widths = {Add(): DIM, Concat(): DIM // 2, Mult(): DIM, Path(hidden=8): 18 * DIM, TensorTrain(rank=2): 2 * DIM}
    for operation, width in widths.items():
        ids, *others = total(by_rank, Case(operation, "row_wise"))
        assert sum(ids) == sum(plain[0])
        for ours, theirs in zip(others, plain[1:], strict=True):
            assert sorted(ours) == sorted([*theirs, 2 * 4 * REMAINDERS * width]), operation


def test_replicated_tables_send_the_gradients_of_their_few_rows(by_rank: list[dict[Case, Traffic]]) -> None:
    plain, composed = (by_rank[0][Case(operation, "data_parallel")] for operation in (None, Mult()))
    assert composed[:2] == plain[:2] == ([], [])
    assert composed[2][-1] / plain[2][-1] == (34 + REMAINDERS) / IDS


def quantised(precision: Precision) -> None:
    """AssertionError where vectors, or updates of weights, differ from unquantised ones by more than the codec."""
    step = {"fp16": 2.0**-10, "int8": 2.0**-7}[precision]  # of the largest number of a row
    registry = codecs(CommsConfig(forward=precision, backward=precision), [DIM // 3])
    for operation, kind in ((Mult(), "table_wise"), (Mult(), "column_wise"), (Add(), "row_wise"), (None, "row_wise")):
        tables = collection(operation)
        exact, lossy = (shard(tables, {"t": kind}, qcomm_codecs_registry=found) for found in (None, registry))
        before = [weight.clone() for weight in local_weights(exact)]
        outputs = [torch.cat([each.values() for each in model(batch()).wait().values()]) for model in (exact, lossy)]
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


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_quantised_comms_stay_within_their_precision(precision: Precision) -> None:
    """Rows on several ranks, too: no vectors of single ids are summed on the wire."""
    run_ranks(2, quantised, precision, timeout_s=60)
