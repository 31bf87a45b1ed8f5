"""Managed tables stand in for plain ones: bags, weights, shared tables; evaluation changes nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrm_torchrec.embeddings.compositional.partitions.arithmetic import QuotientRemainder
from dlrm_torchrec.embeddings.compositional.table_configs import CompositionalEmbeddingBagConfig
from dlrm_torchrec.embeddings.config import TablesConfig
from dlrm_torchrec.embeddings.managed.collection import ManagedEmbeddingBagCollection
from dlrm_torchrec.embeddings.managed.table_configs import ManagedEmbeddingBagConfig, Rules
from dlrm_torchrec.embeddings.tables import build_tables
from dlrm_torchrec.schema import MANAGED_IDS, Table
from tests.embeddings.managed.reference import Reference
from tests.sharding.sharded import features

IDS = {"a": 40, "b": 2**40, "c": 2**40, "d": 50}


def configs(**rules: Any) -> list[EmbeddingBagConfig]:
    return [
        EmbeddingBagConfig(name="plain", num_embeddings=40, embedding_dim=8, feature_names=["a"]),
        ManagedEmbeddingBagConfig(
            name="managed",
            num_embeddings=1_026,
            embedding_dim=8,
            feature_names=["b", "c"],
            num_ids=2**40,
            rules=Rules(**rules),
        ),
        CompositionalEmbeddingBagConfig(
            name="qr", num_embeddings=50, embedding_dim=8, feature_names=["d"], partition=QuotientRemainder(50, 7)
        ),
    ]


def batches(count: int, *, weighted: bool, seed: int) -> list[KeyedJaggedTensor]:
    """Bags of ids of which many repeat."""
    found = []
    for number in range(count):
        batch = features(IDS, 16, 5, weighted, seed + number)
        far = torch.randint(0, 60, (batch.values().numel(),)) ** 6
        parts = [part.clone() for part in batch.values().split(batch.length_per_key())]
        parts[1:3] = far[: len(parts[1])], far[: len(parts[2])]
        found.append(
            KeyedJaggedTensor(batch.keys(), torch.cat(parts), batch.weights_or_none(), lengths=batch.lengths())
        )
    return found


@pytest.mark.parametrize("weighted", [False, True])
def test_a_bag_is_the_sum_of_the_rows_that_the_reference_names(weighted: bool) -> None:
    tables = ManagedEmbeddingBagCollection(configs(update_every=2), weighted)
    config = tables.physical_configs()[1]
    assert isinstance(config, ManagedEmbeddingBagConfig)
    reference = Reference(config)
    for batch in batches(9, weighted=weighted, seed=torch.seed() % 2**40):
        pooled = tables(batch).to_dict()
        jagged = batch.to_dict()
        rows = torch.tensor(reference.step([*jagged["b"].values().tolist(), *jagged["c"].values().tolist()]))
        for name, own in zip("bc", rows.split([len(jagged[name].values()) for name in "bc"]), strict=True):
            weights = jagged[name].weights() if weighted else torch.ones(len(own))
            vectors = tables.embedding_bags["managed"].weight[own] * weights[:, None]
            expected = torch.stack([part.sum(0) for part in vectors.split(jagged[name].lengths().tolist())])
            torch.testing.assert_close(pooled[name], expected)
        expected = functional.embedding_bag(
            jagged["a"].values(),
            tables.embedding_bags["plain"].weight,
            jagged["a"].offsets(),
            mode="sum",
            include_last_offset=True,
            per_sample_weights=jagged["a"].weights() if weighted else None,
        )
        torch.testing.assert_close(pooled["a"], expected)
        assert list(pooled) == ["a", "b", "c", "d"]
    assert len(reference.last) > 30


def test_a_row_that_changes_hands_begins_as_its_id_does_in_any_row() -> None:
    first, second = (ManagedEmbeddingBagCollection(configs(update_every=1)) for _ in range(2))
    vectors = []
    for tables, ids in ((first, [3, 5]), (second, [9, 7, 5, 3])):
        bags = KeyedJaggedTensor(list(IDS), torch.tensor(ids), lengths=torch.tensor([0, len(ids), 0, 0]))
        tables(bags)
        rows, own = tables.maps["managed"].find(torch.tensor([3, 5]))  # type: ignore[operator]  # a module
        assert own.all()
        vectors.append(tables.embedding_bags["managed"].weight[rows])
    assert torch.equal(*vectors)
    assert len(vectors[0].unique()) == vectors[0].numel()
    assert float(vectors[0].abs().max()) <= 1_026**-0.5


def test_evaluation_neither_admits_nor_counts() -> None:
    tables = ManagedEmbeddingBagCollection(configs(update_every=1))
    train, other = batches(2, weighted=False, seed=1)
    tables(train)
    before = {name: value.clone() for name, value in tables.state_dict().items()}
    tables.eval()
    expected = tables(other).values()
    for _ in range(3):
        assert torch.equal(tables(other).values(), expected)
    for name, value in tables.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("number", [-1, 2**40])
def test_an_id_outside_of_the_range_is_refused(number: int) -> None:
    tables = ManagedEmbeddingBagCollection(configs())
    bags = KeyedJaggedTensor(list(IDS), torch.tensor([number]), lengths=torch.tensor([0, 0, 1, 0]))
    with pytest.raises(ValueError, match=r"ids of feature 'c' must be in \[0, 1099511627776\)"):
        tables(bags)


def endless(rows: int = 600) -> Table:
    return Table(name="t_user", rows=rows, dim=8, features=("user",), managed=True)


def test_endless_ids_are_managed_by_default_and_others_above_the_threshold() -> None:
    others = [Table(name=f"t_{rows}", rows=rows, dim=8, features=(f"f{rows}",)) for rows in (100, 9_000)]
    for kind, managed in (("plain", {"t_user": 600}), ("managed", {"t_user": 600, "t_9000": 2_252})):
        config = TablesConfig(kind=kind, max_age=9)  # type: ignore[arg-type]  # a literal
        tables = build_tables([endless(), *others], config)
        assert isinstance(tables, ManagedEmbeddingBagCollection)
        found = [each for each in tables.physical_configs() if isinstance(each, ManagedEmbeddingBagConfig)]
        assert {each.name: each.num_embeddings for each in found} == managed
        assert found[0].num_ids == MANAGED_IDS
        assert found[0].rules.max_age == 9


@pytest.mark.parametrize("kind", ["hash", "hashes"])
def test_endless_ids_can_be_hashed_into_their_rows(kind: Any) -> None:
    tables = build_tables([endless()], TablesConfig(kind=kind))
    (stored,) = tables.physical_configs()
    assert stored.num_embeddings == 600
    assert stored.initial_rows()[0].limit == pytest.approx((600 * (2 if kind == "hashes" else 1)) ** -0.5)


def test_other_kinds_of_endless_ids_are_refused() -> None:
    with pytest.raises(ValueError, match="table 't_user', whose ids have no end, must be managed or hashed"):
        build_tables([endless()], TablesConfig(kind="hot_cold"))
    with pytest.raises(ValueError, match="tables of mixed dims must have a row for each id"):
        build_tables([endless()], TablesConfig(kind="mixed_dimension"))


def test_a_feature_of_a_managed_table_has_no_other_table() -> None:
    tables = configs()
    tables[0].feature_names.append("b")
    with pytest.raises(ValueError, match="feature 'b' of managed table 'managed' must have no other table: got 2"):
        ManagedEmbeddingBagCollection(tables)
