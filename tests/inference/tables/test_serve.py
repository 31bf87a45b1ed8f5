"""Served tables: what the trained collection gives with rounded rows, scripted and not."""

from __future__ import annotations

import random

import pytest
import torch
from torchrec.modules.embedding_configs import EmbeddingBagConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrm_torchrec.embeddings.compositional.collection import CompositionalEmbeddingBagCollection
from dlrm_torchrec.embeddings.compositional.operations import (
    Add,
    Concat,
    FeatureGeneration,
    Mult,
    Operation,
    Passed,
    Path,
)
from dlrm_torchrec.embeddings.compositional.partitions.arithmetic import (
    ChineseRemainder,
    Hash,
    MixedRadix,
    Naive,
    QuotientRemainder,
)
from dlrm_torchrec.embeddings.compositional.partitions.assigned import Assigned
from dlrm_torchrec.embeddings.compositional.partitions.base import Partition
from dlrm_torchrec.embeddings.compositional.partitions.hashes import Hashes
from dlrm_torchrec.embeddings.compositional.partitions.hot_cold import HotCold
from dlrm_torchrec.embeddings.compositional.partitions.renumbered import Renumbered
from dlrm_torchrec.embeddings.compositional.partitions.together import Together
from dlrm_torchrec.embeddings.compositional.table_configs import CompositionalEmbeddingBagConfig
from dlrm_torchrec.embeddings.compositional.tensor_train import TensorTrain
from dlrm_torchrec.embeddings.mixed_dimensions import MixedDimensionEmbeddingBagCollection
from dlrm_torchrec.embeddings.tables import Tables, physical_configs
from dlrm_torchrec.inference.config import TableType
from dlrm_torchrec.inference.tables.serve import ServedTables, table_weights
from dlrm_torchrec.inference.tables.types import rounded

ROWS, DIM, BATCH = 60, 16, 7
PARTITIONS: list[Partition] = [
    Naive(ROWS),
    Hash(ROWS, 11),
    QuotientRemainder(ROWS, 7),
    MixedRadix(ROWS, (4, 4, 5)),
    ChineseRemainder(ROWS, (7, 9)),
    HotCold(9, Hash(ROWS - 9, 8)),
    HotCold(9, QuotientRemainder(ROWS - 9, 8)),
    Assigned.from_clusters(torch.arange(ROWS) % 5),
    Together((Assigned([torch.arange(ROWS) // 3 * 2000], complementary=False), Hash(ROWS, 7, seed=2))),
    Renumbered(HotCold(5, QuotientRemainder(ROWS, 8)), torch.tensor([3, ROWS - 1, 17, 0, 31])),
    Hashes(ROWS, 13, 2),
    HotCold(9, Hashes(ROWS - 9, 13, 2), own_in_all=True),
]
OPERATIONS: list[Operation] = [Concat(), FeatureGeneration(), Add(), Mult(), Path(hidden=5), Path(hidden=0)]
OPERATIONS += [TensorTrain(rank=3)]


def plain(name: str, features: list[str], dim: int = DIM, pooling: PoolingType = PoolingType.SUM) -> EmbeddingBagConfig:
    return EmbeddingBagConfig(
        name=name, num_embeddings=ROWS, embedding_dim=dim, feature_names=features, pooling=pooling
    )


def composed(
    name: str, features: list[str], partition: Partition, operation: Operation, pooling: PoolingType = PoolingType.SUM
) -> CompositionalEmbeddingBagConfig:
    return CompositionalEmbeddingBagConfig(
        name=name, num_embeddings=ROWS, embedding_dim=DIM, feature_names=features, partition=partition,
        operation=operation, pooling=pooling,
    )  # fmt: skip


def collections(*, weighted: bool = False) -> list[Tables]:
    """Every kind of table in one collection; plain ones; mixed dims; without weights of ids also means of bags."""
    kinds = [
        composed(f"t{number}", [f"f{number}"], partition, operation)
        for number, (partition, operation) in enumerate(
            (partition, operation)
            for partition in PARTITIONS
            for operation in OPERATIONS
            if not (isinstance(operation, Concat) and DIM % len(partition.classes))
            and not (partition.shared_from and not isinstance(operation, (Add, Concat)))
        )
    ]
    plain_tables = [plain("p", ["a"]), plain("q", ["b"], 8), plain("r", ["c"])]
    mixed = [plain("p", ["a"], 4), plain("q", ["b", "c"], 8), plain("r", ["d"])]
    sums: list[Tables] = [
        CompositionalEmbeddingBagCollection(kinds, is_weighted=weighted),
        EmbeddingBagCollection(plain_tables, is_weighted=weighted),
        MixedDimensionEmbeddingBagCollection(mixed, DIM, is_weighted=weighted),
    ]
    if weighted:
        return sums
    some = [
        composed("m", ["a", "b"], QuotientRemainder(ROWS, 7), Mult(), PoolingType.MEAN),
        plain("p", ["c", "a"]),
        composed("n", ["d"], MixedRadix(ROWS, (4, 4, 5)), Mult()),
        composed("h", ["e", "c"], QuotientRemainder(ROWS, 7), Path(hidden=5)),
        composed("i", ["h", "c"], MixedRadix(ROWS, (4, 3, 5)), TensorTrain(rank=8)),
        plain("q", ["g"], pooling=PoolingType.MEAN),
    ]
    return [
        *sums,
        CompositionalEmbeddingBagCollection(some),
        EmbeddingBagCollection([plain("p", ["a"], pooling=PoolingType.MEAN), plain("q", ["b", "c"], 8)]),
    ]


def features_of(tables: Tables) -> list[str]:
    configs = tables.embedding_bag_configs()
    names = {name.split("#")[0] for config in configs for name in config.feature_names}
    return sorted(names, key=lambda name: random.Random(name).random())


def batch(features: list[str], longest: int, seed: int = 0, *, weighted: bool = False) -> KeyedJaggedTensor:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0 if longest > 1 else 1, longest + 1, (len(features) * BATCH,), generator=generator)
    ids = torch.randint(ROWS, (int(lengths.sum()),), generator=generator)
    weights = torch.randn(len(ids), generator=generator) if weighted else None
    return KeyedJaggedTensor(keys=features, values=ids, lengths=lengths.int(), weights=weights)


@torch.no_grad()
def round_tables(tables: Tables, types: dict[str, TableType]) -> None:
    """What the trained collection would be with rows of these types; networks and cores stay as they are."""
    stacked = {config.name: config for config in physical_configs(tables)}
    for name, weight in table_weights(tables).items():
        config = stacked[name]
        rows = len(weight)
        if isinstance(getattr(config, "operation", None), Passed):
            rows = config.stack.sizes[0]
        weight[:rows] = rounded(weight[:rows], types[name])


CASES = [*((number, False) for number in range(5)), *((number, True) for number in range(3))]


@pytest.mark.parametrize(("number", "weighted"), CASES)
@pytest.mark.parametrize("longest", [1, 4])
def test_outputs_are_those_of_the_collection_with_rounded_rows(number: int, weighted: bool, longest: int) -> None:
    torch.manual_seed(number)
    tables = collections(weighted=weighted)[number]
    names = list(table_weights(tables))
    random.seed(number)
    fits: tuple[TableType, ...] = ("fp32", "fp16", "int8", "int4")  # a row of a concat may have an odd dim
    types = {name: random.choice(fits) for name in names}
    features = features_of(tables)
    served = torch.jit.script(ServedTables(tables, types, features))
    round_tables(tables, types)
    for seed in range(3):
        given = batch(features, longest, seed, weighted=weighted)
        expected, found = tables(given), served(given)
        assert found.keys() == expected.keys()
        assert found.length_per_key() == expected.length_per_key()
        torch.testing.assert_close(found.values(), expected.values(), rtol=2e-5, atol=2e-6)
