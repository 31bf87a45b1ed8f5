"""AUC, GAUC and calibration over ranks against float64 references and plain loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrm_torchrec.datasets.batch import Batch
from dlrm_torchrec.train.metrics import auc as ranges
from dlrm_torchrec.train.metrics import grouped_auc as grouped
from dlrm_torchrec.train.metrics.auc import auc
from dlrm_torchrec.train.metrics.grouped_auc import grouped_auc, noting_ids
from dlrm_torchrec.train.metrics.reliability import Bin, calibration_bins
from dlrm_torchrec.train.metrics.scores import Scores
from tests.distributed import here, run_ranks

Array = NDArray[np.float64]


def by_mid_ranks(z: Array, y: Array, w: Array) -> float:
    """Weighted AUC from the weight of negatives below each positive, by searching in sorted negatives."""
    order = np.argsort(z[y == 0])
    negatives, total = z[y == 0][order], np.concatenate([[0], np.cumsum(w[y == 0][order])])
    low, high = (total[np.searchsorted(negatives, z[y == 1], side)] for side in ("left", "right"))
    return float((w[y == 1] * (low + high)).sum() / 2 / (w[y == 1].sum() * total[-1]))


def draw(rows: int, decimals: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Float32 outputs, with ties and with one value that a fifth of the rows have, labels and weights."""
    random = np.random.default_rng()
    z = random.normal(-1, 2, rows).round(decimals).astype(np.float32)
    z[random.random(rows) < 0.2] = -0.0
    z[:: max(1, rows // 7)] = 0.0  # equal to -0.0
    y = random.random(rows) < 1 / (1 + np.exp(-z))
    w = random.choice([0.25, 1.0, 3.5], rows)
    return torch.tensor(z), torch.tensor(y).float(), torch.tensor(w).float()


def measured(
    columns: tuple[torch.Tensor, ...], cuts: list[int], ids: torch.Tensor, round_rows: int
) -> tuple[float, float, dict[str, float], list[Bin]]:
    world = here()
    mine = slice(cuts[world.rank], cuts[world.rank + 1])
    z, y, w = (column[mine] for column in columns)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranges, "ROUND_ROWS", round_rows)
        patch.setattr(grouped, "ROUND_ROWS", round_rows)
        weighted = Scores(z, y, w, world.control)
        plain = auc(Scores(z, y, None, world.control))
        return plain, auc(weighted), grouped_auc(weighted, ids[mine]), calibration_bins(*weighted)


@pytest.mark.parametrize(
    ("rows", "decimals", "cuts", "round_rows"),
    [
        (1_000_000, 6, [0, 400_000, 1_000_000], 1 << 17),
        (3000, 1, [0, 0, 3000], 400),
        (2000, 5, [0, 1, 1500, 2000], 300),
    ],
)
def test_ranks_measure_what_one_process_would(rows: int, decimals: int, cuts: list[int], round_rows: int) -> None:
    columns = draw(rows, decimals)
    z, y, w = (column.double().numpy() for column in columns)
    ids = torch.tensor(np.random.default_rng().integers(0, rows // 10, rows)) << 35
    found = run_ranks(len(cuts) - 1, measured, columns, cuts, ids, round_rows)
    assert found == [found[0]] * len(found)
    plain, weighted, of_ids, bins = found[0]
    assert plain == auc(Scores(*columns[:2])) == auc(Scores(*columns[:2], torch.ones(rows)))
    assert plain == pytest.approx(by_mid_ranks(z, y, np.ones(rows)), rel=1e-12)
    assert weighted == pytest.approx(by_mid_ranks(z, y, w), rel=1e-12)
    assert of_ids == pytest.approx(grouped_auc(Scores(*columns), ids), rel=1e-12)
    alone = calibration_bins(*columns)
    assert [each.samples for each in bins] == [each.samples for each in alone]
    for one, other in zip(bins, alone, strict=True):
        assert vars(one) == pytest.approx(vars(other), rel=1e-9)


def test_grouped_auc_is_the_mean_over_a_loop_of_ids() -> None:
    random = np.random.default_rng()
    z, y, w = draw(600, 1)
    ids = torch.tensor(random.integers(-(2**60), 2**60, 80)[random.integers(0, 80, 600)])
    y[ids == ids[0]] = 1  # no AUC
    y[5], w[6] = torch.nan, 0.0  # do not count
    known = ~y.isnan() & (w > 0)
    won = weights = 0.0
    for each in ids[known].unique():
        rows = known & (ids == each)
        if 0 < y[rows].sum() < rows.sum():
            weight = float(w[rows].double().sum())
            won += weight * by_mid_ranks(*(column[rows].double().numpy() for column in (z, y, w)))
            weights += weight
    found = grouped_auc(Scores(z, y, w), ids)
    assert found["gauc"] == pytest.approx(won / weights, rel=1e-12)
    assert found["gauc_share"] == pytest.approx(weights / float(w[known].double().sum()), rel=1e-12)


def test_equal_predictions_are_mixed_between_bins() -> None:
    y = torch.tensor([1.0] * 30 + [0.0] * 70)
    bins = calibration_bins(torch.zeros(100), y, count=3)
    assert [each.samples for each in bins] == [34, 33, 33]
    assert [each.observed for each in bins] == pytest.approx([0.3] * 3)


def test_ids_are_noted_of_real_rows_with_one_each() -> None:
    def batch(lengths: list[int]) -> Batch:
        features = KeyedJaggedTensor(["user", "item"], torch.arange(sum(lengths)), lengths=torch.tensor(lengths))
        return Batch(torch.zeros(3, 1), features, torch.zeros(3), num_rows=2, global_rows=2)

    noted: list[torch.Tensor] = []
    good = batch([2, 0, 1, 1, 1, 0])
    assert list(noting_ids([good], "item", noted)) == [good]
    assert [each.tolist() for each in noted] == [[3, 4]]
    with pytest.raises(
        ValueError, match="feature 'user' must have one id in every row to group rows by: got a row with 2"
    ):
        list(noting_ids([good], "user", noted))
