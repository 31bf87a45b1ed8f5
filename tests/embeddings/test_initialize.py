"""Initial table weights: distribution, independence, and pieces that fit together."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch

from dlrm_torchrec.embeddings import initialize
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


def drawn(row: int, column: int, limit: float, center: float) -> np.float32:
    """An element of table "t" of seed 5 by whole numbers, then by single roundings to float32."""
    salt = int.from_bytes(hashlib.blake2b(b"5/t", digest_size=8).digest(), "little")
    bits = ((row << 20) + column) ^ salt
    bits = (bits ^ bits >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    bits = (bits ^ bits >> 27) * 0x94D049BB133111EB % 2**64
    uniform = np.float32(((bits ^ bits >> 31) >> 40) / 2**24)
    return (uniform * np.float32(2) - np.float32(1)) * np.float32(limit) + np.float32(center)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_every_element_is_a_function_of_its_place(threads: int, dtype: torch.dtype) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    rows, dim, row, column = 3 * initialize._CHUNK_ELEMENTS // 12, 12, (1 << 41) + 7, 5
    parts = [InitialRows(row + 10, center=0.0, limit=0.7), InitialRows(rows, center=1.0, limit=0.03)]
    values = torch.zeros(dim, rows, dtype=dtype)
    contiguous = torch.zeros(rows, dim, dtype=dtype)
    for piece in (values.T, contiguous):
        fill_table(piece, parts, seed=5, table="t", row=row, column=column)
    torch.set_num_threads(before)
    assert torch.equal(values.T, contiguous)
    random = np.random.default_rng()
    places = [(9, 0), (10, 11), (rows - 1, 3), *random.integers(0, (rows, dim), (200, 2)).tolist()]
    for i, j in places:
        limit, center = (0.7, 0.0) if i < 10 else (0.03, 1.0)
        expected = torch.tensor(drawn(row + i, column + j, limit, center)).to(dtype)
        assert contiguous[i, j] == expected


def test_any_device_draws_the_same_numbers() -> None:
    here, there = torch.zeros(50, 6), torch.zeros(50, 6)
    for draw, values in ((initialize._draw_on_cpu, here), (initialize._draw, there)):
        draw(values, 123456789, part=InitialRows(10**12, center=0.25, limit=0.11), salt=-(2**62) - 5, column=3)
    assert torch.equal(here, there)
    assert len(here.unique()) > 290
