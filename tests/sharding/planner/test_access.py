"""What a cache saves, against every id counted one by one, and in the planner that reads it."""

from __future__ import annotations

import copy
import random
import re
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.planner import ParameterConstraints, Topology
from torchrec.distributed.planner.enumerators import EmbeddingEnumerator
from torchrec.distributed.planner.proposers import EmbeddingOffloadScaleupProposer
from torchrec.distributed.planner.types import ShardingOption
from torchrec.distributed.types import CacheParams
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from dlrm_torchrec.schema import AccessStatistics
from dlrm_torchrec.sharding.planner.access import MeasuredAccess

UNUSED = AccessStatistics(samples=8, lookups=0, distinct=0, top_mass=(), reuse=0.0, histogram=())


def statistics_of(counts: list[int], samples: int) -> AccessStatistics:
    """The statistics of ids that were looked up ``counts`` times in ``samples`` rows."""
    entries = []
    for power in range(max(counts).bit_length()):
        members = [count for count in counts if count.bit_length() == power + 1]
        entries.append((len(members), sum(members)))
    return AccessStatistics(
        samples=samples, lookups=sum(counts), distinct=len(counts), top_mass=(), reuse=0.0, histogram=tuple(entries)
    )


def cache_lookups(counts: list[int], batch_lookups: float) -> list[float]:
    """Per id, the most frequent first, the probability that a batch has it."""
    return [1 - (1 - count / sum(counts)) ** batch_lookups for count in sorted(counts, reverse=True)]


@pytest.mark.parametrize("seed", range(10))
def test_equal_to_a_loop_over_ids_where_the_entries_are_of_equal_counts(seed: int) -> None:
    draw = random.Random(seed)
    counts = [2 ** draw.randrange(12) for _ in range(draw.randrange(1, 300))]
    rows, samples, batch = len(counts) + draw.choice([0, 1, 500]), draw.randrange(1, 2 * sum(counts)), 64
    access = MeasuredAccess(statistics=statistics_of(counts, samples), rows=rows, global_batch_size=batch)
    present = cache_lookups(counts, batch * sum(counts) / samples)
    assert access.expected_lookups == pytest.approx(sum(present), rel=1e-9)
    for cached in range(0, rows + 1, max(1, rows // 50)):
        expected = sum(present[cached:]) / sum(present)
        assert access.expected_miss_rate(cached / rows) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("pooling_factor", [1, 4])
def test_close_to_batches_drawn_from_skewed_ids(pooling_factor: int) -> None:
    rows, batch, steps = 4000, 512, 30
    generator = np.random.default_rng(0)
    weights = 1 / np.arange(1, rows + 1) ** 1.05
    ids = generator.choice(rows, size=200_000, p=weights / weights.sum())
    counts = Counter(ids.tolist())
    access = MeasuredAccess(
        statistics=statistics_of(list(counts.values()), len(ids) // pooling_factor), rows=rows, global_batch_size=batch
    )
    batches = [set(generator.choice(ids, batch * pooling_factor).tolist()) for _ in range(steps)]
    distinct = sum(map(len, batches))
    assert access.expected_lookups == pytest.approx(distinct / steps, rel=0.02)
    for clf in (0.01, 0.1, 0.5):
        hot = {id_ for id_, _ in counts.most_common(round(clf * rows))}
        misses = sum(len(batch_ids - hot) for batch_ids in batches)
        assert access.expected_miss_rate(clf) == pytest.approx(misses / distinct, abs=0.02)


@pytest.mark.parametrize("rows", [100, 250])
@pytest.mark.parametrize("counts", [[1] * 100, [1000] + [1] * 99, [2**n for n in range(20)], [3]])
def test_miss_rate_falls_from_one_to_zero_and_its_area_is_the_cacheability(counts: list[int], rows: int) -> None:
    access = MeasuredAccess(statistics=statistics_of(counts, 1000), rows=rows, global_batch_size=16)
    grid = np.linspace(0, 1, 20_001)
    rates = [access.expected_miss_rate(clf) for clf in grid]
    assert rates[0] == 1.0
    assert rates[-1] == 0.0
    assert all(after <= before + 1e-12 for before, after in pairwise(rates))
    assert access.cacheability == pytest.approx(np.trapezoid(rates, grid), abs=1e-6)


def test_skew_makes_a_table_easier_to_cache() -> None:
    even, skewed = statistics_of([10] * 1000, 10_000), statistics_of([9001] + [1] * 999, 10_000)
    assert MeasuredAccess(statistics=even, rows=1000, global_batch_size=64).cacheability == pytest.approx(0.5)
    assert MeasuredAccess(statistics=skewed, rows=1000, global_batch_size=64).cacheability < 0.5
    assert MeasuredAccess(statistics=even, rows=100_000, global_batch_size=64).cacheability == pytest.approx(
        0.005
    )  # most rows are never looked up


def test_a_feature_without_lookups_misses_nothing() -> None:
    access = MeasuredAccess(statistics=UNUSED, rows=10, global_batch_size=64)
    assert (access.expected_lookups, access.cacheability) == (0.0, 0.0)
    assert [access.expected_miss_rate(clf) for clf in (0, 0.1, 1)] == [1.0, 0.0, 0.0]


def test_an_id_in_every_lookup_is_one_cache_lookup() -> None:
    assert MeasuredAccess(statistics=statistics_of([500], 100), rows=10, global_batch_size=64).expected_lookups == 1.0


@pytest.mark.parametrize(
    ("rows", "batch", "message"),
    [
        (
            9,
            4,
            "rows of the table must be at least 10, the number of distinct ids that are looked up in it: got 9; use",
        ),
        (10, 0, "global batch size must be at least 1: got 0; raise it"),
    ],
)
def test_unfit_arguments_are_refused(rows: int, batch: int, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        MeasuredAccess(statistics=statistics_of([1] * 10, 10), rows=rows, global_batch_size=batch)


def option_with(access: MeasuredAccess) -> ShardingOption:
    """A table on one GPU and in host memory, cached with a load factor of 0.1, as TorchRec's planner estimates it."""
    config = EmbeddingBagConfig(num_embeddings=access.rows, embedding_dim=16, name="t", feature_names=["f"])
    constraints = ParameterConstraints(
        sharding_types=["table_wise"],
        compute_kernels=["fused_uvm_caching"],
        cache_params=CacheParams(load_factor=0.1, stats=access),
    )
    enumerator = EmbeddingEnumerator(Topology(1, "cuda"), access.global_batch_size, constraints={"t": constraints})
    model = EmbeddingBagCollection(tables=[config], device=torch.device("meta"))
    (option,) = enumerator.enumerate(model, [EmbeddingBagCollectionSharder()])
    return option


def test_the_planner_charges_what_misses_the_cache() -> None:
    even = MeasuredAccess(statistics=statistics_of([10] * 50_000, 500_000), rows=50_000, global_batch_size=4096)
    skewed = MeasuredAccess(
        statistics=statistics_of([30_000] * 10 + [1] * 40_000, 500_000), rows=50_000, global_batch_size=4096
    )
    prefetch = {access: option_with(access).shards[0].perf.prefetch_compute for access in (even, skewed)}
    fetches = {access: access.expected_lookups * access.expected_miss_rate(0.1) for access in (even, skewed)}
    assert prefetch[skewed] < prefetch[even]
    assert prefetch[skewed] / prefetch[even] == pytest.approx(fetches[skewed] / fetches[even])
    scalable = EmbeddingOffloadScaleupProposer.get_scalable_sharding_options([copy.deepcopy(option_with(even))])
    assert [option.cache_params.stats for option in scalable] == [even]
