"""Synthetic days: pure rows, ids that come and go as promised, and a best AUC that an independent teacher confirms."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import binary_auroc

from dlrm_torchrec.datasets.numpy_columns import Columns
from dlrm_torchrec.datasets.stream import Ranks
from dlrm_torchrec.datasets.synthetic.drift import DayStream, DriftingClicks
from dlrm_torchrec.datasets.synthetic.living_ids import LivingIds
from dlrm_torchrec.datasets.synthetic.specs import Drift, drift_spec
from dlrm_torchrec.schema import DatasetSpec, Encoding, SparseFeature

SPEC = drift_spec((200, 1_000))
BAGS = replace(SPEC, sparse=(*SPEC.sparse, SparseFeature(name="list", rows=400, multi_hot=True, pooling_factor=3.0)))


def ids_of(encoding: Encoding, drift: Drift, rows: int = 4_000) -> LivingIds:
    return LivingIds(SparseFeature(name="a", rows=rows, encoding=encoding), drift, np.uint64(7))


@pytest.mark.parametrize("spec", [SPEC, BAGS])
def test_a_row_is_a_function_of_seed_day_and_number(spec: DatasetSpec) -> None:
    whole, chances = DriftingClicks(spec, Drift(), seed=3).rows(5, 0, 1000)
    other = DriftingClicks(spec, Drift(), seed=3)
    other.rows(6, 0, 10)
    part, part_chances = other.rows(5, 400, 700)
    assert np.array_equal(part.labels, whole.labels[400:700])
    assert np.array_equal(part.dense, whole.dense[400:700])
    assert np.array_equal(part_chances, chances[400:700])
    for bags, all_bags in zip(part.sparse, whole.sparse, strict=True):
        assert np.array_equal(bags.values, all_bags.slice(400, 700).values)
    for changed in (DriftingClicks(spec, Drift(), seed=4).rows(5, 0, 1000), other.rows(6, 0, 1000)):
        assert not np.array_equal(changed[0].dense, whole.dense)


def test_ranks_share_the_rows_of_a_day_and_epochs_repeat_them() -> None:
    world = DriftingClicks(BAGS, Drift())
    alone = list(DayStream(world, 2, num_rows=1000, ranks=Ranks(256, 0, 1), epochs=2).batches())
    pairs = [
        list(DayStream(world, 2, num_rows=1000, ranks=Ranks(256, rank, 2), epochs=2).batches(3)) for rank in (0, 1)
    ]
    assert len(alone) == 8
    assert torch.equal(alone[0].labels, alone[4].labels)
    for one, first, second in zip(alone[3:], *pairs, strict=True):
        halves = [half.labels[: half.num_rows] for half in (first, second)]
        assert torch.equal(torch.cat(halves), one.labels[: one.num_rows])


@pytest.mark.parametrize("encoding", ["id", "vocab", "hash", "managed"])
def test_so_many_ids_are_replaced_each_day_and_each_lives_its_time(encoding: Encoding) -> None:
    living = ids_of(encoding, Drift(replaced=0.1))
    days = [living.values(day) for day in range(41)]
    assert living.living == 1000
    for before, after in itertools.pairwise(days):
        assert 0.06 < np.mean(before != after) < 0.14
    born = [day for day in range(1, 41) if days[day][0] != days[day - 1][0]]
    assert {later - earlier for earlier, later in itertools.pairwise(born)} == {10}
    for day in (0, 40):
        ids = living.ids(day)
        assert ids.min() >= {"vocab": 2, "hash": 1, "managed": 1}.get(encoding, 0)
        assert ids.max() < (4_000 if encoding != "managed" else 2**63 - 1)
        assert len(np.unique(days[day])) == 1000


def test_plain_ids_return_as_they_were_and_hashes_never_do() -> None:
    plain, hashed = (ids_of(encoding, Drift(replaced=0.5)) for encoding in ("id", "hash"))
    assert np.array_equal(plain.ids(0), plain.ids(8))  # four generations of two days
    assert np.array_equal(plain.values(0), plain.values(8))
    assert not np.intersect1d(plain.ids(0), plain.ids(2)).size
    seen = np.concatenate([hashed.values(day) for day in range(0, 40, 2)])
    assert len(np.unique(seen)) == len(seen)


def test_the_encoding_changes_ids_and_nothing_else() -> None:
    columns = [
        DriftingClicks(drift_spec((500, 900), encoding=each), Drift()).rows(9, 0, 500) for each in ("hash", "managed")
    ]
    (hashed, chances), (managed, same) = columns
    assert np.array_equal(chances, same)
    assert np.array_equal(hashed.labels, managed.labels)
    for one, other in zip(hashed.sparse, managed.sparse, strict=True):
        pairs = {(a, b) for a, b in zip(one.values.tolist(), other.values.tolist(), strict=True)}
        assert len(pairs) == len({b for _, b in pairs})  # a managed id is always the same hashed one


def test_effects_turn_slowly_and_keep_their_spread() -> None:
    living = ids_of("managed", Drift(replaced=0.0, speed=0.1), rows=200_000)
    today = living.effects(3)
    assert np.allclose(today.std(axis=1), 1, atol=0.02)
    for days in (1, 7):
        expected = math.sin(2 * 0.1 * days) / (2 * 0.1 * days)
        for now, later in zip(today, living.effects(3 + days), strict=True):
            assert np.corrcoef(now, later)[0, 1] == pytest.approx(expected, abs=0.02)
    still = ids_of("managed", Drift(replaced=0.0, speed=0.0))
    assert np.array_equal(still.effects(0), still.effects(50))


def test_the_best_auc_is_that_of_the_label_s_own_chances() -> None:
    """The logit again, row by row from the ids of the columns, with scales fitted by what the labels say."""
    world = DriftingClicks(BAGS, Drift(), seed=1)
    columns, chances = world.rows(11, 0, 20_000)
    effects = [dict(zip(each.ids(11).tolist(), each.effects(11).T.tolist(), strict=True)) for each in world.living]
    numbers = [17, 1234, *range(50, 90)]
    terms = np.array([_terms(columns, row, effects, world) for row in numbers])
    logits = np.log(chances / (1 - chances))[numbers]
    design = np.column_stack([terms, np.ones(len(terms))])
    weights, *_ = np.linalg.lstsq(design, logits, rcond=None)
    assert np.allclose(design @ weights, logits, atol=1e-9)  # 4 numbers explain 42 rows
    day = DayStream(world, 11, num_rows=20_000, ranks=Ranks(256, 0, 1))
    expected = binary_auroc(torch.from_numpy(chances), torch.from_numpy(columns.labels).long()).item()
    assert day.best_auc() == pytest.approx(expected, abs=1e-12)
    gap = columns.labels.mean() - chances.mean()
    assert abs(gap) < 4 * math.sqrt((chances * (1 - chances)).sum()) / len(chances)


def _terms(columns: Columns, row: int, effects: list[dict[int, list[float]]], world: DriftingClicks) -> list[float]:
    dense, bits = columns.dense[row], world._dense_bits
    weights = [
        [_turned(int(bits[part, column]), speed=world.drift.speed / 4, day=11) for column in range(len(dense))]
        for part in (0, 1)
    ]
    of_dense = [sum(w * float(x) for w, x in zip(part, dense, strict=True)) for part in weights]
    of_ids = [0.0, 0.0]
    for feature, bags, own in zip(world.spec.sparse, columns.sparse, effects, strict=True):
        for value in bags.slice(row, row + 1).values.tolist():
            for part in (0, 1):
                of_ids[part] += own[value][part] / math.sqrt(max(1.0, feature.pooling_factor))
    return [of_dense[0], of_ids[0], of_dense[1] * of_ids[1]]


def _turned(bits: int, *, speed: float, day: int) -> float:
    angle = 2 * speed * day * (bits >> 48) / 65536
    start, later = (
        float(torch.special.ndtri(torch.tensor(((bits >> shift & 0xFFFF) + 0.5) / 65536, dtype=torch.float64)).float())
        for shift in (0, 16)
    )
    return start * math.cos(angle) + later * math.sin(angle)


def test_errors() -> None:
    with pytest.raises(
        ValueError, match=r"replaced must be a share of ids, and speed at least 0: got 1.5 and 0.05; try"
    ):
        Drift(replaced=1.5)
    with pytest.raises(ValueError, match=r"living ids per row must be more than 0: got 0; try .25"):
        Drift(living=0)
    with pytest.raises(ValueError, match=r"a day must have rows, and a number from 0: got 0 rows of day 1; raise them"):
        DayStream(DriftingClicks(SPEC, Drift()), 1, num_rows=0, ranks=Ranks(4, 0, 1))
