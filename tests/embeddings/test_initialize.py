"""Initial table weights: distribution, independence, and pieces that fit together."""

from __future__ import annotations

import numpy as np
import torch

from dlrm_torchrec.embeddings.compositional.stacked_rows import InitialRows
from dlrm_torchrec.embeddings.initialize import fill_table


def table(rows: int, dim: int, seed: int = 0, name: str = "t") -> torch.Tensor:
    values = torch.empty(rows, dim)
    fill_table(values, [InitialRows.plain(rows)], seed=seed, table=name)
    return values


def test_uniform_with_variance_one_third_n() -> None:
    rows = 5000
    values = table(rows, 64).double().numpy().ravel() * np.sqrt(rows)
    assert -1 <= values.min() < -0.9999
    assert 0.9999 < values.max() <= 1
    deviation = np.abs(np.sort(values) - np.linspace(-1, 1, values.size)).max() / 2  # Kolmogorov-Smirnov statistic
    assert deviation * np.sqrt(values.size) < 1.63  # the 1 % point


def test_pieces_of_any_cut_are_the_table() -> None:
    whole = table(301, 24)
    rows = [torch.empty(n, 24) for n in (100, 201)]
    fill_table(rows[0], [InitialRows.plain(301)], seed=0, table="t")
    fill_table(rows[1], [InitialRows.plain(301)], seed=0, table="t", row=100)
    columns = [torch.empty(301, n) for n in (8, 16)]
    fill_table(columns[0], [InitialRows.plain(301)], seed=0, table="t")
    fill_table(columns[1], [InitialRows.plain(301)], seed=0, table="t", column=8)
    assert torch.equal(torch.cat(rows), whole)
    assert torch.equal(torch.cat(columns, dim=1), whole)


def test_rows_columns_tables_and_seeds_are_uncorrelated() -> None:
    whole = table(4000, 32)
    for other in (table(4000, 32, seed=1), table(4000, 32, name="u"), whole.roll(1, 0), whole.roll(1, 1)):
        correlation = np.corrcoef(whole.numpy().ravel(), other.numpy().ravel())[0, 1]
        assert abs(correlation) < 4 / np.sqrt(whole.numel())


def test_a_block_boundary_leaves_no_seam() -> None:
    rows = (1 << 22) // 64 + 10  # one block and a bit
    whole, tail = table(rows, 64), torch.empty(20, 64)
    fill_table(tail, [InitialRows.plain(rows)], seed=0, table="t", row=rows - 20)
    assert torch.equal(whole[-20:], tail)
