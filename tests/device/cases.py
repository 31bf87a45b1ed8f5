"""Tables and batches that together reach every branch of the operations."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any, NamedTuple, get_args

import torch
from torchrec.modules.embedding_configs import EmbeddingBagConfig, PoolingType
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrm_torchrec.datasets.batch import Batch
from dlrm_torchrec.embeddings.compositional.operations import Add, Concat, FeatureGeneration, Mult, Operation, Path
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
from dlrm_torchrec.embeddings.compositional.table_configs import CompositionalEmbeddingBagConfig
from dlrm_torchrec.embeddings.compositional.tensor_train import TensorTrain
from dlrm_torchrec.embeddings.config import OperationName, TablesConfig, TablesKind
from dlrm_torchrec.schema import DatasetSpec, DenseFeature, Label, SparseFeature
from tests.device.double import META
from tests.recipe import ROOT

DIM, BATCH, IDS = 24, 4, 60
OPERATIONS = [Add(), Concat(), FeatureGeneration(), Mult(), Path(hidden=5), Path(hidden=0), TensorTrain(rank=3)]


def partitions(operation: Operation) -> list[Partition]:
    """One of each kind, by their number of classes, so that TorchRec need not change the order of features."""
    own_in_all = isinstance(operation, (Concat, FeatureGeneration))
    return [
        QuotientRemainder(IDS, 2),  # few classes, so that a product sums by class where bags are long
        QuotientRemainder(IDS, 2),
        QuotientRemainder(IDS, 25),
        ChineseRemainder(IDS, (7, 9)),
        Assigned.from_clusters(torch.arange(IDS) % 7),
        HotCold(10, QuotientRemainder(IDS - 10, 4), own_in_all),
        *([Hashes(IDS, 9, 2)] if isinstance(operation, (Add, Concat)) else []),
        MixedRadix(IDS, (3, 4, 5)),
        Hash(IDS, 9),
        Naive(IDS),
    ]


class Case(NamedTuple):
    operation: Operation
    pooling: PoolingType
    weights: str  # of ids: none, given, or learned
    longest: int  # ids of a bag: 1 means one in every bag, otherwise the most of bags that may be empty

    def __str__(self) -> str:
        return f"{self.operation}, {self.pooling.name}, {self.weights} weights, {self.longest} ids per bag"

    def configs(self) -> list[EmbeddingBagConfig]:
        """A compositional table for each partition, the last of which has two features, and a plain table."""
        found: list[EmbeddingBagConfig] = []
        for number, partition in enumerate(partitions(self.operation)):
            names = [f"f{number}", "shared"] if isinstance(partition, Naive) else [f"f{number}"]
            options: dict[str, Any] = {"feature_names": names, "embedding_dim": DIM, "pooling": self.pooling}
            found.append(
                CompositionalEmbeddingBagConfig(
                    name=f"t{number}",
                    num_embeddings=partition.num_ids,
                    partition=partition,
                    operation=self.operation,
                    **options,
                )
            )
        found.append(EmbeddingBagConfig(name="plain", num_embeddings=IDS, embedding_dim=DIM, feature_names=["plain"]))
        return found

    def batch(self, seed: int = 0) -> KeyedJaggedTensor:
        """Bags of ids, on the host."""
        generator = torch.Generator().manual_seed(seed)
        keys = [name for config in self.configs() for name in config.feature_names]
        bags = (len(keys) * BATCH,)
        lengths = torch.ones(bags, dtype=torch.int64)
        if self.longest > 1:
            lengths = torch.randint(0, self.longest + 1, bags, generator=generator)
        count = int(lengths.sum())
        weights = None
        if self.weights != "no":
            weights = torch.rand(count, generator=generator).requires_grad_(self.weights == "learned")
        values = torch.randint(IDS, (count,), generator=generator)
        return KeyedJaggedTensor(keys=keys, values=values, lengths=lengths, weights=weights)


def moved(features: KeyedJaggedTensor) -> KeyedJaggedTensor:
    """A copy on the device, which needs no gradient from the host."""
    weights = features.weights_or_none()
    if weights is not None:
        weights = weights.detach().to(META).requires_grad_(weights.requires_grad)
    return KeyedJaggedTensor(
        keys=features.keys(),
        values=features.values().to(META),
        lengths=features.lengths().to(META),
        weights=weights,
        stride=features.stride(),
        length_per_key=features.length_per_key(),
    )


def of_operation(operation: Operation) -> list[Case]:
    """Every pooling, with and without weights of ids, of short and long bags."""
    return [
        Case(operation, *rest)
        for rest in product([PoolingType.SUM, PoolingType.MEAN], ["no", "given", "learned"], [1, 3, 80])
    ]


def some_of_operation(operation: Operation) -> list[Case]:
    """Some of these cases, in which each pair of their options comes up."""
    chosen = [("no", 1), ("given", 80), ("learned", 3), ("no", 3), ("no", 80), ("learned", 80)]
    poolings = [PoolingType.SUM, PoolingType.MEAN]
    return [Case(operation, poolings[number % 2], *rest) for number, rest in enumerate(chosen)]


def batch_of(spec: DatasetSpec, *, rows: int = 6, longest: int = 6) -> Batch:
    """Random rows, the last of them padding; a multi-hot feature has bags of 0 to ``longest`` ids."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.ones(len(spec.sparse), rows, dtype=torch.int32)
    for feature, own in zip(spec.sparse, lengths, strict=True):
        if feature.multi_hot:
            own.random_(0, longest + 1, generator=generator)
    lengths[:, -1] = 0
    counts = lengths.sum(1).tolist()
    ids = [
        torch.randint(feature.rows, (count,), generator=generator)
        for feature, count in zip(spec.sparse, counts, strict=True)
    ]
    labels = torch.randint(2, (rows, len(spec.labels)), generator=generator).float()
    if len(spec.labels) > 1:
        labels[0, 0] = float("nan")  # unknown
    return Batch(
        dense_features=torch.rand(rows, len(spec.dense), generator=generator),
        sparse_features=KeyedJaggedTensor(
            keys=[feature.name for feature in spec.sparse],
            values=torch.cat(ids),
            weights=torch.rand(sum(counts), generator=generator) if spec.weighted_ids else None,
            lengths=lengths.view(-1),
            stride=rows,
            length_per_key=counts,
        ),
        labels=labels if len(spec.labels) > 1 else labels.squeeze(1),
        num_rows=rows - 1,
        global_rows=rows - 1,
        weights=torch.rand(rows, generator=generator) if spec.weight else None,
    )


PAIRS = DatasetSpec(
    name="pairs",
    label="label",
    dense=(),
    sparse=(SparseFeature(name="user", rows=300), SparseFeature(name="movie", rows=400)),
)
DENSE = (DenseFeature(name="dense_0"), DenseFeature(name="dense_1"))
CLICKS = DatasetSpec(
    name="clicks",
    label="click",
    dense=DENSE,
    sparse=(
        SparseFeature(name="few", rows=20),
        SparseFeature(name="one", rows=300),
        SparseFeature(name="shared_1", rows=250, table="shared"),
        SparseFeature(name="shared_2", rows=250, table="shared", multi_hot=True),
        SparseFeature(name="list", rows=400, multi_hot=True),
    ),
)
# weights of rows and of ids, several labels, labels that are numbers, and a table of a dim of its own
WEIGHTED = replace(CLICKS, weight="weight", sparse=(*CLICKS.sparse[:2], replace(CLICKS.sparse[4], weights="factors")))
LABELS = replace(CLICKS, more_labels=(Label(name="like"),))
NUMBERS = replace(CLICKS, target="number", sparse=CLICKS.sparse[:2])
NARROW = replace(CLICKS, sparse=(CLICKS.sparse[0], replace(CLICKS.sparse[4], dim=8)))


class Trained(NamedTuple):
    """A recipe with some of its options, and data that it takes."""

    recipe: str
    spec: DatasetSpec
    options: dict[str, Any]

    def __str__(self) -> str:
        changed = [f"{name} {value}" for name, value in self.options.items() if name != "tables"]
        tables = self.options.get("tables", TablesConfig())
        return ", ".join([self.recipe, self.spec.name, tables.kind, tables.operation, *changed])

    def config(self, recipe: Any) -> Any:
        return recipe.Config(shape=self.spec, **self.options)


def trained() -> list[Trained]:
    """Every recipe that trains on rows with plain and compositional tables; train_dlrm with every kind and data."""
    return list(_trained())


def _trained() -> Iterator[Trained]:
    mult = TablesConfig(kind="quotient_remainder", collisions=4, threshold=100)
    for path in sorted(each for each in (ROOT / "recipes").glob("train_*.py") if "hstu" not in each.stem):
        spec = PAIRS if path.stem in ("train_mf", "train_neumf") else CLICKS
        yield Trained(path.stem, spec, {"tables": TablesConfig()})
        yield Trained(path.stem, spec, {"tables": mult})
    for kind in get_args(TablesKind):
        if kind not in ("plain", "quotient_remainder", "clusters", "managed"):  # files list clusters; maps read clocks
            vocabularies = tuple(replace(feature, encoding="vocab") for feature in CLICKS.sparse)  # hot_cold needs them
            yield Trained(
                "train_dlrm",
                replace(CLICKS, name="vocabularies", sparse=vocabularies),
                {"tables": TablesConfig(kind=kind, threshold=100 if kind == "hot_cold" else 10)},
            )
    for name in get_args(OperationName):
        yield Trained("train_dlrm", CLICKS, {"tables": replace(mult, operation=name, hidden=8)})
    yield Trained("train_dlrm", CLICKS, {"interaction": "cat"})
    for number, spec in enumerate((WEIGHTED, LABELS, NUMBERS, NARROW)):
        yield Trained("train_dlrm", replace(spec, name=f"data {number}"), {"tables": TablesConfig()})
    yield Trained("train_dlrm", replace(WEIGHTED, name="weighted"), {"tables": mult})
