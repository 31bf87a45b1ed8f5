"""Rows of ids: by machine code, by operators, and by the definitions of the partitions, one id after another."""

from __future__ import annotations

from collections import defaultdict

import pytest
import torch

from dlrm_torchrec.embeddings.compositional.bags import Bags
from dlrm_torchrec.embeddings.compositional.partitions.arithmetic import (
    ChineseRemainder,
    Hash,
    MixedRadix,
    Naive,
    QuotientRemainder,
)
from dlrm_torchrec.embeddings.compositional.partitions.assigned import Assigned
from dlrm_torchrec.embeddings.compositional.partitions.base import INT64_MAX, Partition
from dlrm_torchrec.embeddings.compositional.partitions.hashes import Hashes
from dlrm_torchrec.embeddings.compositional.partitions.hot_cold import HotCold
from dlrm_torchrec.embeddings.compositional.partitions.renumbered import Renumbered
from dlrm_torchrec.embeddings.compositional.partitions.together import Together
from dlrm_torchrec.embeddings.compositional.row_map import ClassRow, Piece, RowMap
from dlrm_torchrec.embeddings.compositional.sources import Source
from tests.embeddings.compositional.reference import classes_of

LARGE = 2**53 + 5  # float64 no longer has every integer
PARTITIONS: list[Partition] = [
    Naive(95),
    Hash(95, 13),
    QuotientRemainder(95, 4),
    MixedRadix(95, (4, 3, 8)),
    ChineseRemainder(95, (10, 11)),
    Assigned.from_clusters(torch.arange(95) % 7),
    QuotientRemainder(LARGE, 3),
    MixedRadix(LARGE, (7, 2**30, 2**30)),
    MixedRadix(3, (2, 2**40, 2**40)),
    Hash(INT64_MAX, 2**40 + 1),
    HotCold(30, Hash(65, 8)),
    HotCold(1, Naive(94)),
    Renumbered(HotCold(3, Hash(95, 8)), torch.tensor([94, 7, 30])),
    Renumbered(HotCold(5, QuotientRemainder(LARGE, 2**40)), torch.tensor([0, LARGE - 1, 5, 2**52, 2**31])),
    HotCold(20, QuotientRemainder(75, 9)),
    HotCold(20, ChineseRemainder(75, (10, 11)), own_in_all=True),
    HotCold(20, Hashes(75, 13, 3), own_in_all=True),
    HotCold(11, QuotientRemainder(LARGE, 2**40)),
    HotCold(11, MixedRadix(LARGE, (7, 2**30, 2**30))),
    Hashes(95, 17, 3),
    Hashes(INT64_MAX, 2**40 + 1, 2),
    HotCold(2**33, Hash(LARGE, 1000)),
    Together((Assigned([torch.arange(95) % 40000 * 400, torch.arange(95) % 3], complementary=False), Hash(95, 7, 5))),
    Hash(LARGE, 1000, seed=3),
]
BATCH = 4


def row_map(count: bool, mean: bool) -> RowMap:
    """Each partition's rows together, then one by one; each class begins at a row of its own."""
    sources = [Source(each.num_ids, f"f{number}", "t", mean, each.first_ids) for number, each in enumerate(PARTITIONS)]
    pieces = []
    for number, partition in enumerate(PARTITIONS):
        rows = tuple(ClassRow(partition, j, 7 * j + number) for j in range(len(partition.classes)))
        pieces += [Piece(number, rows), *(Piece(number, (row,)) for row in rows)]
    return RowMap(sources, pieces, count=count)


def ids_of(longest: int) -> list[list[list[int]]]:
    """The bags of each partition, which also have the first and the last id."""
    generator = torch.Generator().manual_seed(longest)
    bags = []
    for partition in PARTITIONS:
        lengths = torch.randint(0, longest, (BATCH - 1,), generator=generator).tolist()
        last = partition.num_ids - 1
        draws = [torch.randint(0, partition.num_ids, (length,), generator=generator).tolist() for length in lengths]
        bags.append([*draws, [0, last, last]])
    return bags


def as_bags(ids: list[list[list[int]]], weights: torch.Tensor | None) -> Bags:
    flat = [bag for bags in ids for bag in bags]
    values = torch.tensor([value for bag in flat for value in bag])
    return Bags(values, torch.tensor([len(bag) for bag in flat]), weights)


def expected(rows: RowMap, ids: list[list[list[int]]], weights: torch.Tensor | None) -> list[dict[int, float]]:
    """The weight of each row in each bag."""
    found: list[dict[int, float]] = []
    numbers = iter(range(10**6))
    positions = [[[next(numbers) for _ in bag] for bag in bags] for bags in ids]
    for source, own in rows.pieces:
        for bag, places in zip(ids[source], positions[source], strict=True):
            sums: defaultdict[int, float] = defaultdict(float)
            for value, place in zip(bag, places, strict=True):
                weight = 1.0 if weights is None else float(weights[place])
                for row in own:
                    share = weight / len(bag) if rows.sources[source].mean else weight
                    sums[row.first_row + classes_of(row.partition, value)[row.number]] += share
            found.append(sums)
    return found


def weights_of(bags: Bags) -> list[dict[int, float]]:
    found: list[dict[int, float]] = []
    weights = torch.ones(len(bags.values)) if bags.weights is None else bags.weights
    for rows, each in zip(bags.values.split(bags.lengths.tolist()), weights.split(bags.lengths.tolist()), strict=True):
        sums: defaultdict[int, float] = defaultdict(float)
        for row, weight in zip(rows.tolist(), each.tolist(), strict=True):
            sums[row] += weight
        found.append(sums)
    return found


@pytest.mark.parametrize("weighted", ["unweighted", "weighted", "learned"])
@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize("longest", [3, 60])
def test_rows_and_weights(longest: int, mean: bool, weighted: str) -> None:
    ids = ids_of(longest)
    weights = None if weighted == "unweighted" else torch.rand(sum(len(bag) for bags in ids for bag in bags))
    wanted = expected(row_map(False, mean), ids, weights)
    if weights is not None:
        weights.requires_grad_(weighted == "learned")
    sizes = []
    for count in (False, True):
        found = row_map(count, mean)(as_bags(ids, weights))
        sizes.append(len(found.values))
        assert weighted != "learned" or (found.weights is not None and found.weights.requires_grad)
        for one, other in zip(weights_of(found), wanted, strict=True):
            assert one.keys() == other.keys()
            assert [one[row] for row in one] == pytest.approx([other[row] for row in one], rel=1e-5)
    shortened = longest == 60 and weighted != "learned"
    assert (sizes[1] < sizes[0]) == shortened
    assert sizes[0] == sum(
        len(bag) * len(piece.rows) for piece in row_map(False, mean).pieces for bag in ids[piece.source]
    )


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("value", [-1, 95])
def test_ids_out_of_range(value: int, learned: bool) -> None:
    ids = ids_of(3)
    ids[4][3][1] = value
    weights = torch.rand(sum(len(bag) for bags in ids for bag in bags), requires_grad=True) if learned else None
    with pytest.raises(
        ValueError, match=rf"ids of feature 'f4' must be in \[0, 95\), .* table 't': got {value}; check"
    ):
        row_map(True, False)(as_bags(ids, weights))
