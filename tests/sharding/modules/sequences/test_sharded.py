"""Sharded tables of single ids against the unsharded collection: every operation, sharding type and kernel."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
import torch.distributed as dist
from torchrec.modules.embedding_configs import EmbeddingConfig
from torchrec.optim.optimizers import in_backward_optimizer_filter
from torchrec.sparse.jagged_tensor import JaggedTensor

from dlrm_torchrec.embeddings.compositional.operations import Add, Concat, Mult, Operation, Path
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
from dlrm_torchrec.embeddings.compositional.sequences import CompositionalEmbeddingCollection
from dlrm_torchrec.embeddings.compositional.table_configs import CompositionalEmbeddingConfig
from dlrm_torchrec.embeddings.compositional.tensor_train import TensorTrain
from dlrm_torchrec.sharding.modules import composed_kernels
from dlrm_torchrec.sharding.modules.composed_shardings import offered_types
from dlrm_torchrec.sharding.modules.sharder import CHANGED_BY
from tests.distributed import run_ranks
from tests.sharding.sharded import ARGUMENTS, features, shard

IDS, DIM, BATCH, LONGEST = 95, 48, 6, 12
OPERATIONS = [Add(), Concat(), Mult(), Path(hidden=8), TensorTrain(rank=3)]
KINDS = ["table_wise", "column_wise", "row_wise", "data_parallel", "mixed"]
FEATURES = {"of no table": 9, "f0": IDS, "f1": IDS, "f2": IDS, "f3": IDS, "f4": IDS, "f5": IDS, "f6": 50}


@dataclass(frozen=True)
class Case:
    """One collection and what it is trained with."""

    operation: Operation
    kind: str  # sharding type, where a table can have it, or 'mixed' for another one per table
    optimizer: type[torch.optim.Optimizer]


def configs(operation: Operation) -> list[EmbeddingConfig]:
    """A table per kind of partition and two plain ones; all kinds of tables share the feature f0."""
    clusters = torch.randint(0, 7, (IDS,), generator=torch.Generator().manual_seed(0))
    partitions = {
        "quotient_remainder": (QuotientRemainder(IDS, 4), ["f0", "f1"]),
        "chinese_remainder": (ChineseRemainder(IDS, (10, 11)), ["f2", "f0"]),
        "mixed_radix": (MixedRadix(IDS, (4, 3, 8)), ["f3"]),
        "hash": (Hash(IDS, 13), ["f4"]),
        "clusters": (Together((Assigned([clusters], complementary=False), Hash(IDS, 11, seed=1))), ["f4"]),
        "hot_cold": (HotCold(20, QuotientRemainder(IDS - 20, 9)), ["f1"]),
        "renumbered": (Renumbered(HotCold(7, QuotientRemainder(IDS, 9)), torch.arange(5, 75, 10)), ["f6"]),
    }
    if isinstance(operation, (Add, Concat)):
        partitions["hashes"] = (Hashes(IDS, 17, 2), ["f2"])
    composed = [
        CompositionalEmbeddingConfig(
            name=name,
            num_embeddings=IDS,
            embedding_dim=DIM,
            feature_names=names,
            partition=partition,
            operation=operation,
        )
        for name, (partition, names) in partitions.items()
    ]
    plain = [
        EmbeddingConfig(name=name, num_embeddings=IDS, embedding_dim=DIM, feature_names=names)
        for name, names in {"plain": ["f6", "f0"], "another": ["f5"]}.items()
    ]
    return [*composed[:2], plain[0], *composed[2:], plain[1]]


def cases(operation: Operation) -> Iterator[Case]:
    """Every sharding type, with the two optimizers in turn, unless one of them excludes the type."""
    for number, kind in enumerate(KINDS):
        optimizer = list(ARGUMENTS)[number % 2]
        yield Case(operation, kind, torch.optim.SGD if kind in excluded(optimizer) else optimizer)


def excluded(optimizer: type[torch.optim.Optimizer]) -> list[str]:
    """Sharding types that would change an optimizer's arithmetic."""
    return CHANGED_BY.get(optimizer, ([], ""))[0]


def kinds(case: Case, tables: CompositionalEmbeddingCollection) -> dict[str, str]:
    """The sharding type of each table."""
    found = {}
    for number, config in enumerate(tables.physical_configs()):
        choices = [kind for kind in offered_types(config) if kind not in excluded(case.optimizer)]
        other = choices[number % len(choices)]
        found[config.name] = case.kind if case.kind in choices else other
    return found


def assert_equal(found: dict[str, JaggedTensor], expected: dict[str, JaggedTensor], place: str) -> None:
    assert sorted(found) == sorted(expected)
    for key, theirs in expected.items():
        message = f"{place}, {key}: {{}}".format
        assert torch.equal(found[key].lengths(), theirs.lengths())
        assert torch.equal(found[key].weights(), theirs.weights())  # the ids
        torch.testing.assert_close(found[key].values(), theirs.values(), rtol=1e-4, atol=2e-5, msg=message)


def loss(output: dict[str, JaggedTensor]) -> torch.Tensor:
    """Another one for each place of a sequence, so that no two vectors of an id are interchangeable."""
    vectors = torch.cat([output[key].values() for key in sorted(output)])
    return ((vectors - 1).square().mean(1) * torch.linspace(1, 2, len(vectors))).sum()


def compare(case: Case) -> None:
    """Train three steps and look up once more; AssertionError where sharded and unsharded tables differ."""
    ranks, rank = dist.get_world_size(), dist.get_rank()
    torch.manual_seed(1)
    reference = CompositionalEmbeddingCollection(configs(case.operation), need_indices=True)
    model = shard(reference, kinds(case, reference), case.optimizer)
    arguments = ARGUMENTS[case.optimizer]
    optimizers = [case.optimizer(reference.parameters(), **arguments)]
    replicated = [parameter for _, parameter in in_backward_optimizer_filter(model.named_parameters())]
    if replicated:
        optimizers.append(case.optimizer(replicated, **arguments))
    start = [parameter.detach().clone() for parameter in reference.parameters()]
    for step in range(4):
        longest = [LONGEST if step != 2 or r else 0 for r in range(ranks)]  # in one step, rank 0 has no ids
        batches = [features(FEATURES, BATCH, longest[r], False, 10 * step + r) for r in range(ranks)]
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


def compare_all(chosen: list[Case], threads: int = 1) -> int:
    """Compares all cases, and returns their number."""
    torch.set_num_threads(threads)
    os.environ["LOCAL_WORLD_SIZE"] = str(dist.get_world_size())
    for case in chosen:
        try:
            compare(case)
        except Exception as error:
            error.add_note(f"in {case}")
            raise
    return len(chosen)


@pytest.mark.parametrize("ranks", [1, 2])
def test_sharded_equals_unsharded(ranks: int) -> None:
    chosen = [case for operation in OPERATIONS for case in cases(operation)]
    assert run_ranks(ranks, compare_all, chosen, timeout_s=240) == [len(chosen)] * ranks


def test_lookups_by_two_threads() -> None:
    chosen = [case for operation in OPERATIONS for case in cases(operation) if case.kind in ("table_wise", "mixed")]
    assert run_ranks(1, compare_all, chosen, 2, timeout_s=60) == [len(chosen)]


def compare_without_sorted_updates(chosen: list[Case]) -> int:
    """With FBGEMM's kernels, which half-precision tables and those on a GPU have."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(composed_kernels, "can_sort", lambda _: False)
        return compare_all(chosen)


def test_fbgemm_kernels() -> None:
    chosen = [case for operation in OPERATIONS for case in cases(operation) if case.kind == "table_wise"]
    assert run_ranks(1, compare_without_sorted_updates, chosen, timeout_s=60) == [len(chosen)]


def refuse_bad_ids() -> None:
    """AssertionError unless ids that a table does not have are refused, by name; those of plain tables, too."""
    reference = CompositionalEmbeddingCollection(configs(Mult()))
    model = shard(reference, dict.fromkeys((config.name for config in reference.physical_configs()), "table_wise"))
    batch = features(FEATURES, BATCH, LONGEST, False, 0)
    for feature, table in {"f3": "mixed_radix", "f5": "another"}.items():
        number = list(FEATURES).index(feature)
        values = batch.values().clone()
        values[batch.offset_per_key()[number]] = IDS
        bad = type(batch)(keys=batch.keys(), values=values, lengths=batch.lengths())
        expected = rf"ids of feature '{feature}' must be in \[0, {IDS}\), the ids of table '{table}': got {IDS}"
        with pytest.raises(ValueError, match=expected):
            model(bad).wait()


def test_ids_out_of_range_are_refused() -> None:
    run_ranks(1, refuse_bad_ids, timeout_s=60)
