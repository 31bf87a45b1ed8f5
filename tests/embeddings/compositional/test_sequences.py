"""``CompositionalEmbeddingCollection``: a vector for each id, against loops in float64 and TorchRec's collection."""

from __future__ import annotations

import pytest
import torch
from torchrec.modules.embedding_configs import DataType, EmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrm_torchrec.embeddings.compositional.operations import Add, Concat, Mult, Operation, Path
from dlrm_torchrec.embeddings.compositional.partitions.arithmetic import (
    ChineseRemainder,
    Hash,
    MixedRadix,
    QuotientRemainder,
)
from dlrm_torchrec.embeddings.compositional.partitions.assigned import Assigned
from dlrm_torchrec.embeddings.compositional.partitions.base import Partition
from dlrm_torchrec.embeddings.compositional.partitions.hashes import Hashes
from dlrm_torchrec.embeddings.compositional.partitions.hot_cold import HotCold
from dlrm_torchrec.embeddings.compositional.partitions.together import Together
from dlrm_torchrec.embeddings.compositional.sequences import CompositionalEmbeddingCollection
from dlrm_torchrec.embeddings.compositional.table_configs import CompositionalEmbeddingConfig
from dlrm_torchrec.embeddings.compositional.tensor_train import TensorTrain
from tests.embeddings.compositional import reference

IDS, DIM = 95, 12
CODES = torch.randint(0, 7, (IDS,), generator=torch.Generator().manual_seed(0))
PARTITIONS: dict[str, Partition] = {
    "quotient-remainder": QuotientRemainder(IDS, 4),
    "mixed-radix": MixedRadix(IDS, (12, 4, 2)),
    "chinese-remainder": ChineseRemainder(IDS, (32, 3)),
    "hash": Hash(IDS, 24),
    "hashes": Hashes(IDS, 17, 2),
    "hot-cold": HotCold(11, QuotientRemainder(IDS - 11, 6)),
    "clusters": Together((Assigned([CODES], complementary=False), Hash(IDS, 11, seed=1))),
}
OPERATIONS: list[Operation] = [Add(), Concat(), Mult(), Path(hidden=7), Path(hidden=0), TensorTrain(rank=2)]
ALL = [
    (name, operation)
    for name, partition in PARTITIONS.items()
    for operation in OPERATIONS
    if isinstance(operation, (Add, Concat)) or not partition.shared_from
]


def composed(partition: Partition, operation: Operation, features: tuple[str, ...] = ("f",)) -> EmbeddingConfig:
    return CompositionalEmbeddingConfig(
        num_embeddings=IDS,
        embedding_dim=DIM,
        name="t",
        feature_names=list(features),
        partition=partition,
        operation=operation,
    )


def sequences(seed: int, features: tuple[str, ...] = ("f",)) -> KeyedJaggedTensor:
    """Histories of 0, 7, 0, 3 and 1 ids, some of them repeated."""
    ids = torch.randint(0, IDS, (len(features) * 11,), generator=torch.Generator().manual_seed(seed))
    ids[3], ids[8] = ids[0], ids[1]
    return KeyedJaggedTensor(list(features), ids, lengths=torch.tensor([0, 7, 0, 3, 1] * len(features)))


@pytest.mark.parametrize(("name", "operation"), ALL, ids=str)
def test_vectors_and_gradients_are_as_defined(name: str, operation: Operation) -> None:
    partition = PARTITIONS[name]
    collection = CompositionalEmbeddingCollection([composed(partition, operation)])
    weight = collection.embeddings["t"].weight
    torch.nn.init.normal_(weight)
    ours, theirs = weight, weight.detach().double().requires_grad_()
    batch = sequences(seed=1)
    found = collection(batch)["f"]
    expected = torch.stack([reference.vector(operation, partition, theirs, int(x)) for x in batch.values()])
    assert torch.equal(found.lengths(), batch.lengths())
    torch.testing.assert_close(found.values(), expected.float(), rtol=1e-4, atol=1e-5)
    towards = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2))
    found.values().backward(towards)
    expected.backward(towards.double())
    assert ours.grad is not None
    assert theirs.grad is not None
    torch.testing.assert_close(ours.grad, theirs.grad.float(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["quotient-remainder", "mixed-radix", "chinese-remainder", "hot-cold"])
@pytest.mark.parametrize("operation", [Add(), Concat(), Mult(), Path(hidden=0), TensorTrain(rank=2)], ids=str)
def test_complementary_partitions_give_distinct_vectors(name: str, operation: Operation) -> None:
    torch.manual_seed(0)
    collection = CompositionalEmbeddingCollection([composed(PARTITIONS[name], operation)])
    batch = KeyedJaggedTensor(["f"], torch.arange(IDS), lengths=torch.tensor([IDS]))
    assert len(collection(batch)["f"].values().unique(dim=0)) == IDS


def test_plain_tables_are_those_of_torchrec() -> None:
    """The same keys, where two tables share a feature, the same vectors and the same ids as weights."""
    configs = [
        EmbeddingConfig(num_embeddings=IDS, embedding_dim=DIM, name=name, feature_names=names, data_type=data_type)
        for name, names, data_type in (("a", ["f", "g"], DataType.FP32), ("b", ["g"], DataType.FP16))
    ]
    ours, theirs = (
        kind(configs, need_indices=True) for kind in (CompositionalEmbeddingCollection, EmbeddingCollection)
    )
    ours.load_state_dict(theirs.state_dict())
    batch = sequences(3, ("f", "g"))
    found, expected = ours(batch), theirs(batch)
    assert list(found) == list(expected) == ["f", "g@a", "g@b"]
    for key, vectors in expected.items():
        for one, other in ((found[key].values(), vectors.values()), (found[key].weights(), vectors.weights())):
            assert torch.equal(one, other)
            assert one.dtype == other.dtype
    assert ours.embedding_configs() == theirs.embedding_configs()


def test_models_see_the_table_that_it_stands_for() -> None:
    collection = CompositionalEmbeddingCollection([composed(QuotientRemainder(IDS, 4), Concat())], torch.device("meta"))
    (seen,), (stored,) = collection.embedding_configs(), collection.physical_configs()
    assert (seen.num_embeddings, seen.embedding_dim, seen.feature_names) == (IDS, DIM, ["f"])
    assert (stored.num_embeddings, stored.embedding_dim) == tuple(collection.embeddings["t"].weight.shape) == (28, 6)
    assert collection.device == collection.embeddings["t"].weight.device == torch.device("meta")
