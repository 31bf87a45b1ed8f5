"""Fitting tables to bytes: the loss against counting, the choice against trying all, the bytes against the model."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torchrec.optim import RowWiseAdagrad

from dlrm_torchrec.datasets.criteo import criteo_kaggle_spec
from dlrm_torchrec.datasets.profile import summary
from dlrm_torchrec.embeddings.assignments import Assignment
from dlrm_torchrec.embeddings.compositional.partitions.assigned import Assigned
from dlrm_torchrec.embeddings.compositional.partitions.base import Partition
from dlrm_torchrec.embeddings.compositional.table_configs import CompositionalEmbeddingBagConfig
from dlrm_torchrec.embeddings.config import DataTypeName, TablesConfig, TablesKind
from dlrm_torchrec.embeddings.tables import (
    build_tables,
    partition_of,
    physical_configs,
    read_tables,
    stored_config,
    write_tables,
)
from dlrm_torchrec.schema import AccessStatistics, Table
from dlrm_torchrec.sharding.planner.fit import Choice, best, choices, describe_choices, equally, fit, shared, zipf
from dlrm_torchrec.sharding.planner.shortfall import DoesNotFitError

Counts = NDArray[np.int64]


def statistics(counts: Counts) -> AccessStatistics:
    """The statistics of ids that are looked up ``counts`` times, one id a row."""
    return summary(counts.copy(), int(counts.sum()), reuse=0.0)


def skewed(rows: int, exponent: float) -> Counts:
    """Lookups of each id; the last tenth is never looked up."""
    counts = np.floor(3 * (rows / np.arange(1, rows + 1)) ** exponent).astype(np.int64)
    counts[-rows // 10 :] = 0
    return counts


def counted(counts: Counts, classes: Counts) -> float:
    """Share of lookups of rows whose updates come from other ids, counted row by row."""
    per_class = np.bincount(classes, weights=counts)
    mine = counts[counts > 0]
    return float((mine * (1 - mine / per_class[classes[counts > 0]])).sum() / counts.sum())


@pytest.mark.parametrize("exponent", [0.3, 0.8, 1.2])
@pytest.mark.parametrize("collisions", [2, 4, 32, 500])
def test_the_loss_is_that_of_ids_dealt_at_random(exponent: float, collisions: int) -> None:
    rows, random = 20_000, np.random.default_rng(collisions)
    counts = skewed(rows, exponent)
    dealt = [counted(counts, random.permutation(rows) // collisions) for _ in range(20)]
    error = 4 * float(np.std(dealt)) / math.sqrt(len(dealt)) + 0.004  # ids of a power of two are taken for equal
    assert shared(rows, collisions, statistics(counts)) == pytest.approx(float(np.mean(dealt)), abs=error)


@pytest.mark.parametrize("exponent", [0.3, 0.8, 1.2])
@pytest.mark.parametrize(("num_hot", "collisions"), [(10, 4), (1000, 32), (5000, 500), (19_000, 2)])
def test_the_loss_beside_hot_ids_is_that_of_the_others_dealt_at_random(
    exponent: float, num_hot: int, collisions: int
) -> None:
    rows, random = 20_000, np.random.default_rng(collisions)
    counts = skewed(rows, exponent)
    tail = counts[num_hot:]
    dealt = [
        counted(tail, random.permutation(len(tail)) // collisions) * tail.sum() / counts.sum() if tail.sum() else 0.0
        for _ in range(20)
    ]
    error = 4 * float(np.std(dealt)) / math.sqrt(len(dealt)) + 0.012  # the hot ones of a power of two are estimated
    found = shared(rows, collisions, statistics(counts), num_hot=num_hot)
    assert found == pytest.approx(float(np.mean(dealt)), abs=error)


def test_hot_cold_tables_get_the_share_of_hot_rows_that_loses_least() -> None:
    rows, base = 20_000, TablesConfig(kind="hot_cold", tail="hash")
    by_frequency = replace(table(rows), by_frequency=True)
    for exponent in (0.3, 1.2):
        access = statistics(skewed(rows, exponent))
        found = choices(by_frequency, base, torch.optim.SGD, pooling_factor=1.0, access=access)
        for choice in found[1:]:
            (stored,) = physical_configs(build_tables([by_frequency], choice.config))
            assert choice.rows == stored.num_embeddings == -(-rows // choice.config.collisions)
        assert all(a.loss <= b.loss for a, b in pairwise(found))
        (tried,) = (choice for choice in found if choice.config.collisions == 8)
        losses = {
            hot: shared(rows, -(-(rows - int(2500 * hot)) // (2500 - int(2500 * hot))), access, num_hot=int(2500 * hot))
            for hot in (0.05, 0.1, 0.2, 0.35, 0.5)
        }
        assert tried.loss == pytest.approx(min(losses.values()))
        assert losses[tried.config.hot] == tried.loss


def test_vocabularies_become_hot_cold_as_long_as_their_rows_suffice() -> None:
    vocabulary, access = replace(table(20_000), by_frequency=True), statistics(skewed(20_000, 1.0))
    found = choices(vocabulary, TablesConfig(), torch.optim.SGD, pooling_factor=1.0, access=access)
    kinds = [choice.config.kind for choice in found]
    assert kinds == sorted(kinds, key=["plain", "hot_cold", "chinese_remainder"].index)
    others = choices(table(20_000), TablesConfig(), torch.optim.SGD, pooling_factor=1.0, access=access)
    losses = {choice.config.collisions: choice.loss for choice in others}
    hot = [choice for choice in found if choice.config.kind == "hot_cold"]
    assert len(hot) > 5
    assert all(choice.loss < losses[choice.config.collisions] for choice in hot if choice.config.collisions in losses)
    for choice in found:
        (stored,) = physical_configs(build_tables([vocabulary], choice.config))
        assert choice.rows == stored.num_embeddings


@pytest.mark.parametrize("rows", [1, 2, 3, 1000, 4095, 4096])
def test_zipfs_law_is_that_of_counting(rows: int) -> None:
    lookups = 1024 * rows / np.arange(1, rows + 1)
    found = zipf(rows)
    assert found.distinct == rows
    for power, entry in enumerate(found.histogram):
        mine = lookups[(lookups >= 1 << power) & (lookups < 2 << power)]
        assert entry[0] == len(mine)
        assert entry[1] == pytest.approx(mine.sum(), abs=0.6)


def test_zipfs_law_holds_for_a_billion_ids() -> None:
    found = zipf(10**9)
    share_of_a_million = sum(lookups for _, lookups in found.histogram[-20:]) / found.lookups
    assert share_of_a_million == pytest.approx(
        (math.log(10**9 / 2**10) + 0.57722) / (math.log(10**9) + 0.57722), rel=1e-5
    )


def test_without_frequencies_the_loss_is_that_of_zipfs_law() -> None:
    rows, random = 20_000, np.random.default_rng(0)
    counts = np.round(1000 * rows / np.arange(1, rows + 1)).astype(np.int64)
    for collisions in (2, 8, 64):
        found = choices(table(rows), TablesConfig(), torch.optim.SGD, pooling_factor=2.0, access=None)
        (loss,) = (choice.loss for choice in found if choice.config.collisions == collisions)
        dealt = [2 * counted(counts, random.permutation(rows) // collisions) for _ in range(20)]
        assert loss == pytest.approx(float(np.mean(dealt)), abs=0.03)


def test_the_loss_of_equally_frequent_ids_is_the_share_of_the_other_ids() -> None:
    uniform = statistics(np.full(1000, 64, dtype=np.int64))
    assert shared(1000, 4, uniform) == pytest.approx(3 / 4, abs=1e-6)
    assert shared(1000, 1, uniform) == pytest.approx(0, abs=1e-6)


def test_an_id_seen_once_costs_less_than_one_seen_a_million_times() -> None:
    once = np.ones(10_000, dtype=np.int64)
    hot = once.copy()
    hot[:10] = 1_000_000  # nearly all lookups are of ten ids, which hardly ever meet
    assert shared(10_000, 4, statistics(once)) == pytest.approx(0.75, abs=1e-6)
    assert shared(10_000, 4, statistics(hot)) < 0.01


@pytest.mark.parametrize("exponent", [0.8, 1.2])
def test_ids_sorted_by_frequency_lose_less_by_remainders_than_by_quotients(exponent: float) -> None:
    rows, collisions = 20_000, 8
    counts = skewed(rows, exponent)  # as a vocabulary has them

    def loss(kind: TablesKind) -> float:
        partition: Partition = partition_of(TablesConfig(kind=kind, collisions=collisions), rows)
        return counted(counts, partition.of(torch.arange(rows))[0].numpy())

    dealt = shared(rows, collisions, statistics(counts))
    assert loss("chinese_remainder") < dealt < loss("quotient_remainder")


def table(rows: int, dim: int = 8) -> Table:
    return Table(name=f"t{rows}", rows=rows, dim=dim, features=(f"f{rows}",))


@pytest.mark.parametrize("kind", ["plain", "quotient_remainder", "hash", "mixed_radix"])
@pytest.mark.parametrize("data_type", ["fp32", "fp16"])
@pytest.mark.parametrize(
    ("optimizer", "moment_bytes"), [(torch.optim.SGD, 0), (RowWiseAdagrad, 4), (torch.optim.Adagrad, 32)]
)
def test_choices_shrink_and_have_the_bytes_of_the_stored_table(
    kind: TablesKind, data_type: DataTypeName, optimizer: type[torch.optim.Optimizer], moment_bytes: int
) -> None:
    base = TablesConfig(kind=kind, data_type=data_type)
    found = choices(table(50_000), base, optimizer, pooling_factor=3.0, access=None)
    assert found[0].config.kind == "plain"
    assert found[0].loss == 0
    assert {choice.config.kind for choice in found[1:]} == {"chinese_remainder" if kind == "plain" else kind}
    for choice in found:
        (stored,) = physical_configs(build_tables([table(50_000)], choice.config))
        width = 8 * (2 if data_type == "fp16" else 4) + moment_bytes
        assert choice.rows == stored.num_embeddings
        assert choice.bytes == stored.num_embeddings * width
    assert all(a.bytes > b.bytes and a.loss <= b.loss <= 3 for a, b in pairwise(found))
    assert found[-1].rows < 150 if kind in ("plain", "mixed_radix") else found[-1].rows < 500  # 3 n^(1/3), 2 n^(1/2)


def test_a_recipe_s_own_sizes_do_not_bind_the_choices() -> None:
    base = TablesConfig(kind="quotient_remainder", max_rows=1000, operation="add")
    found = choices(table(50_000), base, torch.optim.SGD, pooling_factor=1.0, access=None)
    assert [choice.rows for choice in found[:3]] == [50_000, 25_000 + 2, 16_667 + 3]
    assert {choice.config.operation for choice in found} == {"add"}


def test_clusters_have_the_size_of_their_assignments(tmp_path: Path) -> None:
    made = Assignment(assigned=Assigned([torch.arange(50_000) % 500] * 2, complementary=False), made="", hash_classes=7)
    save_file(made.tensors(), tmp_path / "t50000.safetensors", made.metadata())
    base = TablesConfig(kind="clusters", assignments=str(tmp_path))
    plain, clusters = choices(table(50_000), base, torch.optim.SGD, pooling_factor=2.0, access=None)
    assert (plain.config.kind, plain.bytes) == ("plain", 4 * 8 * 50_000)
    assert (clusters.rows, clusters.bytes) == (1007, 4 * 8 * 1007 + 2 * 2 * 50_000)
    assert clusters.loss == 2 * shared(50_000, 100, zipf(50_000))
    write_tables(str(tmp_path / "tables.json"), {"t50000": clusters.config, "t9": plain.config}, base)
    again = read_tables(str(tmp_path / "tables.json"), base)
    assert [stored_config(table(50_000), config).num_embeddings for config in again.values()] == [50_000] * 2
    assert isinstance(stored_config(table(50_000), again["t50000"]), CompositionalEmbeddingBagConfig)
    (only,) = choices(table(40_000), base, torch.optim.SGD, pooling_factor=2.0, access=None)
    assert only.config.kind == "plain"


def test_a_table_below_the_threshold_stays_plain() -> None:
    assert len(choices(table(200), TablesConfig(), torch.optim.SGD, pooling_factor=1.0, access=None)) == 1
    assert len(choices(table(201), TablesConfig(), torch.optim.SGD, pooling_factor=1.0, access=None)) > 1


def random_choices(seed: int) -> dict[str, list[Choice]]:
    random = np.random.default_rng(seed)
    tables = {}
    for number in range(5):
        sizes = np.sort(random.integers(1_000_000, 100_000_000, random.integers(1, 5)))[::-1]
        losses = np.concatenate([[0], np.sort(random.random(len(sizes) - 1))])
        tables[f"t{number}"] = [
            Choice(config=TablesConfig(), rows=1, bytes=int(size), loss=float(loss))
            for size, loss in zip(sizes, losses, strict=True)
        ]
    return tables


def total(chosen: dict[str, Choice]) -> tuple[int, float]:
    return sum(choice.bytes for choice in chosen.values()), sum(choice.loss for choice in chosen.values())


@pytest.mark.parametrize("seed", range(20))
def test_the_best_choice_is_that_of_trying_all(seed: int) -> None:
    tables = random_choices(seed)
    plain = {name: ways[0] for name, ways in tables.items()}
    smallest = {name: ways[-1] for name, ways in tables.items()}
    budget = (total(plain)[0] + total(smallest)[0]) // 2
    chosen = best(tables, budget)
    assert chosen is not None
    assert list(chosen) == list(tables)
    tried = [dict(zip(tables, ways, strict=True)) for ways in product(*tables.values())]
    assert total(chosen)[0] <= budget
    # bytes are rounded up to 1 / 10,000 of the budget for each table
    least = min(total(each)[1] for each in tried if total(each)[0] <= budget * (1 - 5e-4))
    assert total(chosen)[1] <= least + 1e-12
    assert best(tables, total(plain)[0]) is not None
    assert best(tables, total(smallest)[0] - 1) is None
    exact = best(tables, total(smallest)[0])
    assert exact is not None
    assert total(exact)[0] == total(smallest)[0]


def criteo_choices() -> dict[str, list[Choice]]:
    """Criteo-shaped: the tables of the Kaggle set, each with a skew of its own."""
    random = np.random.default_rng(0)
    return {
        table.name: choices(
            table,
            TablesConfig(),
            RowWiseAdagrad,
            pooling_factor=1.0,
            access=statistics(skewed(min(table.rows, 200_000), float(random.uniform(0.4, 1.3)))),
        )
        for table in criteo_kaggle_spec().tables(16)
    }


@pytest.mark.parametrize("number", [1, 4, 10, 15])
def test_it_loses_less_than_compressing_every_table_equally(number: int) -> None:
    tables = criteo_choices()
    naive = {name: ways[min(number, len(ways) - 1)] for name, ways in tables.items()}
    budget = total(naive)[0]
    fitted, again = best(tables, budget), equally(tables, budget)
    assert fitted is not None
    assert again is not None
    assert total(again) == total(naive)
    assert total(fitted)[0] <= budget
    assert total(fitted)[1] < 0.9 * total(naive)[1]


def test_fit_takes_the_largest_budget_that_can_be_planned() -> None:
    tables = criteo_choices()
    limit, attempts = 300_000_000, []

    def attempt(chosen: dict[str, Choice]) -> int:
        attempts.append(total(chosen)[0])
        if total(chosen)[0] > limit:
            raise DoesNotFitError
        return total(chosen)[0]

    chosen, planned = fit(tables, attempt, free_bytes=500_000_000)
    assert planned == total(chosen)[0]
    assert 0.98 * limit < planned <= limit
    assert len(attempts) < 12

    everything = total({name: ways[0] for name, ways in tables.items()})[0]
    limit = everything
    assert fit(tables, attempt, free_bytes=everything)[1] == everything

    limit = 0
    with pytest.raises(DoesNotFitError):
        fit(tables, attempt, free_bytes=everything)


def test_what_was_chosen_is_told() -> None:
    plain, small = (
        Choice(config=TablesConfig(), rows=10, bytes=5_000_000_000, loss=0.0),
        Choice(config=TablesConfig(kind="mixed_radix", collisions=8), rows=1_234_567, bytes=1_500_000_000, loss=0.25),
    )
    text = describe_choices({"t_a": plain, "t_b": small})
    assert text.splitlines()[1].split() == ["t_b", "mixed_radix", "8", "1,234,567", "1.500", "0.25"]
    assert "1 tables stay plain; 6.50 GB of weights and moments; 0.25 lookups per sample" in text
