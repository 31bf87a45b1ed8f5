"""The compiled reading of Criteo lines against the careful one, which defines what a line holds."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlrm_torchrec.preparation.readers.lines import Lines, read_lines
from dlrm_torchrec.preparation.readers.raw_criteo import CriteoReader
from tests.preparation import criteo_files, criteo_mutations

MAX_LINE = 700


def expect_careful_rows(reader: CriteoReader, block: Lines) -> tuple[int, int]:
    """That all lines are read as the careful reading has them; how many the compiled one took, and how many are bad."""
    rows = reader._rows(block)
    lines = block.select(block.starts < block.ends)
    quick, (careful, checks) = reader.quickly(lines), reader.carefully(lines)
    assert not (quick.good & ~checks.good).any()
    assert rows.rejected == lines.rejected(checks, reader.max_line_bytes)
    np.testing.assert_array_equal(rows.numbers, lines.numbers[checks.good])
    np.testing.assert_array_equal(rows.label, careful.label[checks.good])
    np.testing.assert_array_equal(rows.dense, careful.dense.T[checks.good])
    for column, values, missing in zip(rows.sparse, careful.sparse, careful.missing, strict=True):
        assert column.to_pylist() == [
            None if gone else value
            for value, gone in zip(values[checks.good].tolist(), missing[checks.good].tolist(), strict=True)
        ]
    return int(quick.good.sum()), len(rows.rejected)


def read(data: bytes, reader: CriteoReader) -> tuple[int, int]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "f"
        path.write_bytes(data)
        blocks = read_lines(str(path), block_bytes=reader.block_bytes, max_line_bytes=reader.max_line_bytes)
        counts = [expect_careful_rows(reader, block) for block in blocks]
    return sum(quick for quick, _ in counts), sum(bad for _, bad in counts)


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 2**32),
    st.booleans(),
    st.sampled_from([1 << 32, 40_000_000, 7]),
    st.sampled_from([300, 1 << 20]),
    st.lists(st.sampled_from(criteo_mutations.TEXT), max_size=6),
)
def test_mutated_files_are_read_like_the_careful_reading(
    seed: int, labelled: bool, max_ind_range: int, block_bytes: int, mutations: list[criteo_mutations.Mutation]
) -> None:
    rng = np.random.default_rng(seed)
    data = criteo_files.content(rng, 12, labelled)
    for mutation in mutations:
        data = mutation(rng, data)
    read(
        data,
        CriteoReader(labelled=labelled, max_ind_range=max_ind_range, block_bytes=block_bytes, max_line_bytes=MAX_LINE),
    )


odd_fields = st.one_of(
    st.text("0123456789", max_size=22),
    st.text("-+ 0123456789\r\n\t\0", max_size=4),
    st.text("0123456789abcdefABCDEF", min_size=8, max_size=8),
    st.text("0123456789abcdefgG@`:/", min_size=7, max_size=9),
)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.lists(st.dictionaries(st.integers(0, 39), odd_fields, max_size=2), max_size=6))
def test_odd_fields_are_read_like_the_careful_reading(seed: int, odd: list[dict[int, str]]) -> None:
    rng = np.random.default_rng(seed)
    lines = []
    for places in odd:
        fields = criteo_files.line(rng).split(b"\t")
        for place, value in places.items():
            fields[place] = value.encode()
        lines.append(b"\t".join(fields))
    read(b"\n".join(lines), CriteoReader())


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_well_formed_lines_need_no_careful_reading(end: bytes) -> None:
    data = criteo_files.content(np.random.default_rng(0), 500).replace(b"\n", end)
    assert read(data, CriteoReader(block_bytes=5000)) == (500, 0)
    assert read(data.upper(), CriteoReader()) == (500, 0)
    assert read(data, CriteoReader(max_line_bytes=200))[1] > 0
