"""Maps of ids to rows equal a reference of dictionaries, and TorchRec's module where that has no ties to break."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torchrec.modules.mc_modules import (
    DistanceLFU_EvictionPolicy,
    LFU_EvictionPolicy,
    LRU_EvictionPolicy,
    MCHManagedCollisionModule,
)
from torchrec.sparse.jagged_tensor import JaggedTensor

from dlrm_torchrec.embeddings.managed.id_map import TALLIES, IdMap
from dlrm_torchrec.embeddings.managed.table_configs import ManagedEmbeddingBagConfig, Rules
from tests.embeddings.managed.reference import Reference


def managed(rows: int, **rules: Any) -> ManagedEmbeddingBagConfig:
    return ManagedEmbeddingBagConfig(
        name="t", num_embeddings=rows, embedding_dim=4, feature_names=["f"], num_ids=2**63 - 1, rules=Rules(**rules)
    )


def drifting(steps: int, batch: int, *, seed: int) -> Iterator[list[int]]:
    """Ids of which few are frequent; the range moves, some come back, and a batch may be empty."""
    numbers = random.Random(seed)
    known = [numbers.randrange(2**63 - 1) for _ in range(40 * batch)]
    for step in range(steps):
        first = step * 20 % (20 * batch)
        yield [known[first + int(20 * batch * numbers.random() ** 3)] for _ in range(numbers.choice([0, 1, batch]))]


@pytest.mark.parametrize(
    ("rows", "rules"),
    [
        (9, {"policy": "lru", "update_every": 1}),
        (30, {"policy": "lru", "update_every": 3, "max_age": 7}),
        (30, {"policy": "lfu", "update_every": 4, "admit_after": 2}),
        (30, {"policy": "distance", "update_every": 2}),
        (1_026, {"policy": "lru", "update_every": 5, "admit_after": 2}),
        (1_026, {"policy": "distance", "update_every": 5, "max_age": 20}),
    ],
)
def test_rows_and_tallies_equal_the_references(rows: int, rules: dict[str, Any]) -> None:
    config = managed(rows, **rules)
    ids_to_rows, reference = IdMap(config), Reference(config)
    evicted = admitted = returned = lookups = without_row = 0
    for ids in drifting(120, 2 * rows // 3, seed=torch.seed()):
        before, gone = set(reference.last), len(reference.evicted)
        without_row += sum(number not in before for number in ids)
        lookups += len(ids)
        expected = reference.step(ids)
        come = [number for number in reference.last if number not in before]
        returned += len({*come} & {*reference.evicted})
        admitted, evicted = admitted + len(come), evicted + len(reference.evicted) - gone
        found, _ = ids_to_rows.train_step(torch.tensor(ids, dtype=torch.int64))
        assert found.tolist() == expected
    assert ids_to_rows.occupied() == len(reference.last)
    tallies = dict(zip(TALLIES, ids_to_rows.tallies[0].tolist(), strict=True))
    assert tallies["lookups"] == lookups
    assert tallies["without_row"] == without_row
    assert tallies["admitted"] == admitted > 0
    assert tallies["evicted"] == evicted > 0
    assert tallies["returned"] <= returned + admitted // 20  # a trace of eight bits is sometimes another id's
    if evicted < rows:
        assert tallies["returned"] >= returned // 2  # of the newest evictions


def test_a_full_waiting_room_counts_those_who_came_first() -> None:
    config = managed(8, update_every=4, admit_after=2, policy="lfu")
    assert config.places == 8
    ids_to_rows, reference = IdMap(config), Reference(config)
    for step in range(1, 40):
        ids = [1 + (step // 3 * 7 + number * number) % 23 for number in range(12)]
        assert ids_to_rows.train_step(torch.tensor(ids))[0].tolist() == reference.step(ids)
    assert ids_to_rows.occupied() == len(reference.last) > 0


@pytest.mark.parametrize("policy", ["lru", "lfu", "distance"])
def test_a_copy_of_the_buffers_at_any_step_goes_on_alike(policy: str) -> None:
    config = managed(1_026, policy=policy, update_every=7, admit_after=2)
    undisturbed, other = IdMap(config), IdMap(config)
    for ids in drifting(60, 600, seed=torch.seed()):
        fresh = IdMap(config)
        fresh.load_state_dict(other.state_dict())
        other = fresh
        batch = torch.tensor(ids, dtype=torch.int64)
        assert torch.equal(undisturbed.train_step(batch)[0], other.train_step(batch)[0])
    for name, value in undisturbed.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_shards_of_a_map_are_the_map() -> None:
    config = managed(2_048, policy="distance", update_every=3)
    assert config.buckets == 4
    whole = IdMap(config)
    halves = [IdMap(config, first_bucket=first, buckets=2) for first in (0, 2)]
    for ids in drifting(40, 1_400, seed=torch.seed()):
        batch = torch.tensor(ids, dtype=torch.int64)
        rows = whole.train_step(batch)[0]
        for number, half in enumerate(halves):
            own = rows // 1_024 == number
            assert torch.equal(half.train_step(batch[own])[0], rows[own] - 1_024 * number)
    for name, value in whole.state_dict().items():
        parts = torch.cat([half.state_dict()[name] for half in halves])
        assert torch.equal(value.sum(0), parts.sum(0)) if name == "tallies" else torch.equal(value, parts), name


@pytest.mark.parametrize(
    ("policy", "of_torchrec"),
    [("lru", LRU_EvictionPolicy), ("lfu", LFU_EvictionPolicy), ("distance", DistanceLFU_EvictionPolicy)],
)
def test_the_ids_with_rows_are_those_of_torchrecs_module(policy: str, of_torchrec: Any) -> None:
    """Each step has one id, as often as a prime number says, so that there are no ties."""
    rows, every = 16, 5
    theirs = MCHManagedCollisionModule(rows, torch.device("cpu"), of_torchrec(), every, name="t")
    ours = IdMap(managed(rows, policy=policy, update_every=every))
    primes = [number for number in range(101, 500) if all(number % factor for factor in range(2, 23))]
    numbers = random.Random(torch.seed())
    for step in range(200):
        number = int(len(primes) * numbers.random() ** 2) if step else -1  # the first batch decides how many they count
        batch = torch.full((primes[number],), primes[number] << 50)
        theirs({"t": JaggedTensor(values=batch, lengths=torch.ones_like(batch))})
        ours.train_step(batch)
        assert held(ours) == held_by_torchrec(theirs)
    assert len(held(ours)) == rows - 1


def held(ids_to_rows: IdMap) -> set[int]:
    return {*ids_to_rows.ids.tolist()} - {2**63 - 1}


def held_by_torchrec(module: MCHManagedCollisionModule) -> set[int]:
    return {*module.state_dict()["_mch_sorted_raw_ids"].tolist()} - {2**63 - 1}


def test_searching_changes_nothing() -> None:
    ids_to_rows = IdMap(managed(30, update_every=2))
    batches: Sequence[list[int]] = [*drifting(20, 40, seed=torch.seed())]
    for ids in batches:
        ids_to_rows.train_step(torch.tensor(ids, dtype=torch.int64))
    before = {name: value.clone() for name, value in ids_to_rows.state_dict().items()}
    for _ in range(5):
        ids_to_rows.find(torch.randint(0, 2**63 - 1, (50,)))
    for name, value in ids_to_rows.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_rows_that_are_no_whole_buckets_are_refused() -> None:
    with pytest.raises(
        ValueError, match="rows of managed table 't' must be at least 2 and a multiple of its 2 buckets"
    ):
        managed(1_025)
