"""The synthetic stream: rows are functions of their index, ids are Zipf, and the teacher tells the truth."""

import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch

from dlrm_torchrec.datasets.synthetic.clicks import SyntheticStream
from dlrm_torchrec.datasets.synthetic.specs import demo_spec
from dlrm_torchrec.datasets.synthetic.teacher import _weights
from dlrm_torchrec.datasets.synthetic.zipf import Zipf
from dlrm_torchrec.schema import DatasetSpec, DenseFeature, SparseFeature
from tests.datasets.batches import concatenate, rows_of

SPEC = DatasetSpec(
    name="small",
    label="click",
    dense=tuple(DenseFeature(name=f"d{i}") for i in range(5)),
    sparse=(
        SparseFeature(name="one", rows=10),
        SparseFeature(name="bag", rows=1000, multi_hot=True, pooling_factor=3.0),
        SparseFeature(name="two", rows=7),
    ),
)


def stream(
    spec: DatasetSpec = SPEC,
    *,
    num_rows: int = 100,
    batch: int = 24,
    rank: int = 0,
    world_size: int = 1,
    **options: Any,
) -> SyntheticStream:
    return SyntheticStream(
        spec, num_rows=num_rows, global_batch_size=batch, rank=rank, world_size=world_size, **options
    )


@pytest.mark.parametrize("world_size", [2, 3, 4, 8])
def test_ranks_together_hold_the_same_rows_in_the_same_order(world_size: int) -> None:
    alone = [rows_of([batch]) for batch in stream().batches()]
    shares = [list(stream(rank=rank, world_size=world_size).batches()) for rank in range(world_size)]
    assert [len(rows) for rows in alone] == [24, 24, 24, 24, 4]
    for step, expected in enumerate(alone):
        assert rows_of([share[step] for share in shares]) == expected


def test_rows_do_not_depend_on_the_batch_size() -> None:
    expected = rows_of(stream(num_rows=5000, batch=5000).batches())
    assert rows_of(stream(num_rows=5000, batch=7).batches()) == expected


def test_batches_from_a_step_are_the_tail() -> None:
    everything = [rows_of([batch]) for batch in stream().batches()]
    for start in range(len(everything) + 1):
        assert [rows_of([batch]) for batch in stream().batches(start)] == everything[start:]
    assert stream().num_steps == len(everything)


def test_the_last_batch_is_padded_alike_on_every_rank() -> None:
    last = [list(stream(num_rows=25, batch=24, rank=rank, world_size=3).batches())[-1] for rank in range(3)]
    assert [batch.num_rows for batch in last] == [1, 0, 0]
    assert [batch.global_rows for batch in last] == [1, 1, 1]
    for batch in last:
        assert batch.dense_features.shape == (1, 5)
        assert batch.sparse_features.stride() == 1
        assert batch.sparse_features.keys() == ["one", "bag", "two"]
    assert last[2].dense_features.abs().sum() == 0
    assert last[2].labels.sum() == 0
    assert last[2].sparse_features.lengths().sum() == 0
    assert len(last[2].sparse_features.values()) == 0


def test_the_batch_has_the_types_of_its_contract() -> None:
    batch = next(iter(stream().batches()))
    assert batch.dense_features.dtype == torch.float32
    assert batch.labels.dtype == torch.float32
    assert batch.sparse_features.values().dtype == torch.int64
    assert batch.sparse_features.lengths().dtype == torch.int32


def test_splits_and_seeds_differ_and_share_nothing() -> None:
    drawn = [
        rows_of(stream(num_rows=500, batch=500, split=split, seed=seed).batches())
        for split in ("train", "val", "test")
        for seed in (0, 1)
    ]
    dense = {row[1] for rows in drawn for row in rows}
    assert len(dense) == 6 * 500


def test_dense_columns_are_standard_normal() -> None:
    dense = concatenate(stream(num_rows=50_000, batch=5000).batches()).dense.double()
    n = len(dense)
    assert dense.mean(0).abs().max() < 5 / n**0.5
    assert (dense.var(0) - 1).abs().max() < 5 * (2 / n) ** 0.5
    correlation = torch.corrcoef(dense.T) - torch.eye(5, dtype=torch.float64)
    assert correlation.abs().max() < 5 / n**0.5
    for cut in (-2.0, -0.5, 0.0, 1.0, 2.5):
        expected = torch.special.ndtr(torch.tensor(cut, dtype=torch.float64))
        bound = 5 * (expected * (1 - expected) / n) ** 0.5
        assert ((dense < cut).double().mean(0) - expected).abs().max() < bound


@pytest.mark.parametrize("exponent", [1.05, 1.5])
@pytest.mark.parametrize("rows", [1, 2, 7, 500])
def test_zipf_frequencies_match_the_exact_distribution(rows: int, exponent: float) -> None:
    zipf = Zipf(rows, exponent)
    # Independent of the code: integrate x^-exponent over [k, k + 1) by fine midpoints.
    points = (np.arange(1000) + 0.5) / 1000
    weights = ((np.arange(1, rows + 1)[:, None] + points) ** -exponent).mean(axis=1)
    expected = np.sort(weights / weights.sum())
    np.testing.assert_allclose(np.sort(zipf.probabilities()), expected, rtol=1e-5)

    n = 200_000
    counts = np.bincount(zipf.ids(np.random.default_rng(3).random(n)), minlength=rows)
    assert len(counts) == rows
    expected_counts = n * zipf.probabilities()
    chi_square = ((counts - expected_counts) ** 2 / expected_counts).sum()
    # Mean and variance of chi-square with rows - 1 degrees of freedom; 5 standard deviations.
    assert chi_square <= (rows - 1) + 5 * (2 * (rows - 1)) ** 0.5


def test_ids_of_the_stream_follow_the_zipf_distribution() -> None:
    batch = next(iter(stream(num_rows=100_000, batch=100_000, exponent=1.2).batches()))
    for feature in SPEC.sparse:
        ids = batch.sparse_features[feature.name].values().numpy()
        counts = np.bincount(ids, minlength=feature.rows)
        expected = len(ids) * Zipf(feature.rows, 1.2).probabilities()
        chi_square = ((counts - expected) ** 2 / expected).sum()
        assert chi_square <= (feature.rows - 1) + 5 * (2 * (feature.rows - 1)) ** 0.5


@pytest.mark.parametrize("rows", [1, 2, 3, 64, 1000, 4181])
def test_popularity_is_spread_by_a_bijection(rows: int) -> None:
    ids = Zipf(rows, 1.1).scatter(np.arange(rows))
    assert sorted(ids) == list(range(rows))
    if rows >= 1000:
        assert np.abs(np.diff(ids[:100])).min() > rows / 10


def test_bag_lengths_are_uniform_up_to_twice_the_pooling_factor() -> None:
    batch = next(iter(stream(num_rows=70_000, batch=70_000).batches()))
    counts = torch.bincount(batch.sparse_features["bag"].lengths())
    assert len(counts) == 7
    assert (counts - 10_000).abs().max() < 5 * (70_000 * (1 / 7) * (6 / 7)) ** 0.5
    assert (batch.sparse_features["one"].lengths() == 1).all()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_labels_agree_with_the_teachers_probabilities(seed: int) -> None:
    validation = stream(demo_spec(), split="val", num_rows=60_000, batch=6000, seed=seed)
    p = validation.probabilities()
    labels = concatenate(validation.batches()).labels.double()
    assert abs(p.mean() - 0.25) < 0.03
    for low in torch.linspace(0, 0.9, 10):
        inside = (p >= low) & (p < low + 0.1)
        n = int(inside.sum())
        error = labels[inside].mean() - p[inside].mean()
        assert n > 300
        assert abs(error) < 4.5 * (p[inside] * (1 - p[inside])).mean() ** 0.5 / n**0.5


@pytest.mark.parametrize("grouped", [0.0, 0.9])
def test_the_teacher_is_the_documented_formula(grouped: float) -> None:
    """Against a plain loop: the logits are one affine map of three sums over the row, dense by dense and id by id."""
    rows = stream(num_rows=3000, batch=3000, split="val", grouped=grouped)
    columns = concatenate(rows.batches())
    teacher, groups = rows._teacher, [rows.groups(feature.name) for feature in SPEC.sparse]
    weights = teacher._dense_weights
    terms = np.zeros((300, 3))
    for row in range(300):
        effect = slope = 0.0
        for key, group, scale, bags in zip(
            teacher._sparse_keys, groups, teacher._bag_scale, columns.sparse, strict=True
        ):
            for value in bags[row]:
                own, common = (
                    _weights(each, np.array([number]))[0].astype(float)
                    for each, number in ((key, value), (~key, group[value]))
                )
                per_id = (1 - grouped) ** 0.5 * own + grouped**0.5 * common
                effect += float(per_id[0]) * scale
                slope += float(per_id[1]) * scale
        x = columns.dense[row].double().numpy()
        terms[row] = x @ weights[:, 0], effect, (x @ weights[:, 1]) * slope
    logits = torch.logit(rows.probabilities()[:300]).numpy()
    design = np.column_stack([terms, np.ones(300)])
    solution, _, rank, _ = np.linalg.lstsq(design, logits, rcond=None)
    assert rank == 4
    np.testing.assert_allclose(design @ solution, logits, atol=1e-9)
    assert (np.abs(solution[:3]) > 0.05).all()


def test_best_auc_is_that_of_the_teachers_probabilities() -> None:
    validation = stream(demo_spec(), split="val", num_rows=4000, batch=1000)
    p = validation.probabilities().numpy()
    labels = concatenate(validation.batches()).labels.numpy()
    positive, negative = p[labels == 1], p[labels == 0]
    pairs = (positive[:, None] > negative).sum() + 0.5 * (positive[:, None] == negative).sum()
    assert validation.best_auc() == pytest.approx(pairs / (len(positive) * len(negative)), abs=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_the_demo_can_be_learnt_but_not_perfectly(seed: int) -> None:
    validation = stream(demo_spec(), split="val", num_rows=20_000, batch=1000, seed=seed)
    assert 0.80 < validation.best_auc() < 0.87


def test_a_huge_table_needs_no_memory_of_its_own() -> None:
    criteo = DatasetSpec(
        name="criteo-like",
        label="click",
        dense=tuple(DenseFeature(name=f"d{i}") for i in range(13)),
        sparse=tuple(SparseFeature(name=f"s{i}", rows=40_000_000) for i in range(26)),
    )
    tracemalloc.start()  # counts NumPy's arrays
    batch = next(iter(stream(criteo, num_rows=2048, batch=2048).batches()))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert batch.sparse_features.values().max() > 30_000_000
    assert peak < 32 * 2**20  # one byte per row of one table would be 38 MiB


def test_a_spec_without_dense_columns_still_has_a_teacher() -> None:
    spec = DatasetSpec(name="ids", label="click", dense=(), sparse=SPEC.sparse)
    rows = stream(spec, num_rows=20_000, batch=1000, split="val")
    assert next(iter(rows.batches())).dense_features.shape == (1000, 0)
    assert abs(rows.probabilities().mean() - 0.25) < 0.03
    assert rows.best_auc() > 0.75


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"world_size": 5}, "global_batch_size must be a positive multiple of world_size 5: got 24; choose a multiple"),
        ({"batch": 0}, "global_batch_size must be a positive multiple"),
        ({"rank": 2, "world_size": 2}, r"rank must be in \[0, world_size\): got 2 of 2"),
        ({"num_rows": 0}, "num_rows must be positive: got 0"),
        ({"exponent": 1.0}, "the Zipf exponent must be above 1: got 1.0"),
        ({"positive_rate": 1.0}, r"positive_rate must be in \(0, 1\): got 1.0"),
        ({"logit_std": 0.0}, "logit_std must be positive: got 0.0"),
        ({"grouped": 1.5}, "grouped must be a share of the ids' effects: got 1.5; try .9, or 0 for no groups"),
    ],
)
def test_bad_arguments_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        stream(**options)


def test_a_start_beyond_the_end_is_refused() -> None:
    with pytest.raises(ValueError, match=r"start_step must be in \[0, 5\], the steps of this stream: got 6"):
        next(stream().batches(6))


def test_a_table_without_rows_is_refused() -> None:
    spec = DatasetSpec(
        name="uncounted", label="click", dense=(), sparse=(SparseFeature(name="s", rows=0, encoding="vocab"),)
    )
    with pytest.raises(ValueError, match="a table must have at least one row to draw ids from: got 0"):
        stream(spec)
