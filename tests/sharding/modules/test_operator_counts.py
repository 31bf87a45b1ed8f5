"""How many operators a step launches: they grow with groups of tables, and not with tables."""

from __future__ import annotations

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode
from torchrec.modules.embedding_configs import EmbeddingBagConfig

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
from dlrm_torchrec.embeddings.compositional.partitions.arithmetic import MixedRadix, QuotientRemainder
from dlrm_torchrec.embeddings.compositional.partitions.base import Partition
from dlrm_torchrec.embeddings.compositional.table_configs import CompositionalEmbeddingBagConfig
from dlrm_torchrec.embeddings.compositional.tensor_train import TensorTrain
from tests.distributed import run_ranks
from tests.sharding.sharded import features, shard

DIM, PLAIN, MOST = 24, 2, 30  # MOST more operators than plain tables need
PATHS = [Path(hidden=4), Path(hidden=0)]
OPERATIONS = [Add(), Concat(), FeatureGeneration(), Mult(), *PATHS, TensorTrain(rank=4)]
VIEWS = {"view", "_unsafe_view", "expand", "select", "slice", "split", "split_with_sizes", "unbind", "transpose", "t"}
VIEWS |= {"permute", "detach", "alias", "as_strided", "unsqueeze", "squeeze", "chunk"}


class Counted(TorchDispatchMode):
    """Counts the operators that compute something."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # untyped in torch
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.__name__.split(".")[0] not in VIEWS
        return func(*args, **(kwargs or {}))


def table(number: int, operation: Operation | None, partition: Partition) -> EmbeddingBagConfig:
    options: dict[str, Any] = {
        "name": f"t{number}",
        "num_embeddings": partition.num_ids,
        "embedding_dim": DIM,
        "feature_names": [f"f{number}"],
    }
    if operation is None or number < PLAIN:
        return EmbeddingBagConfig(**options)
    return CompositionalEmbeddingBagConfig(**options, operation=operation, partition=partition)


def step(operation: Operation | None, tables: int, ids_per_bag: int, learned: bool) -> int:
    """Operators of a lookup, forward and backward, in ``tables`` tables of different sizes."""
    partitions = [
        MixedRadix(90 + number, (4, 5, 9)) if ids_per_bag == 7 else QuotientRemainder(90 + number, 3 + number % 2)
        for number in range(tables)
    ]
    ids = {f"f{number}": partition.num_ids for number, partition in enumerate(partitions)}
    configs = [table(number, operation, partition) for number, partition in enumerate(partitions)]
    model = shard(CompositionalEmbeddingBagCollection(configs, learned), {each.name: "table_wise" for each in configs})
    (lookup,) = model.module.tables._lookups
    for batch in (features(ids, 8, ids_per_bag, learned, seed) for seed in (0, 1)):  # the first creates constants
        if learned:
            batch.weights().requires_grad_()
        with Counted() as counted:
            lookup(batch).square().sum().backward()
    return counted.count


def count_all() -> None:
    """AssertionError where operators grow with tables, or a group needs too many."""
    for learned in (False, True):  # weights that learn go the way of a GPU: by operators, without machine code
        for ids_per_bag in (2, 7, 40):
            plain = step(None, 12, ids_per_bag, learned)
            for operation in OPERATIONS:
                few, many = (step(operation, tables, ids_per_bag, learned) for tables in (4, 12))
                case = (
                    f"{operation}, {ids_per_bag} ids per bag, learned weights {learned}: {few}, {many}, plain {plain}"
                )
                assert many <= few, case
                # vectors are sorted by class for each network or core, but for a path's one network
                general = learned or (isinstance(operation, Passed) and (ids_per_bag == 7 or operation not in PATHS))
                assert general or many <= plain + MOST, case


def test_operators_grow_with_groups() -> None:
    run_ranks(1, count_all)
