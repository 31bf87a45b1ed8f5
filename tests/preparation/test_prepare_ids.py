"""Hashes, vocabularies and splits: what gives a raw value its id and a row its place."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from dlrm_torchrec.preparation.readers.rows import Rows
from dlrm_torchrec.preparation.splits import ByHash, ByPosition, Whole
from dlrm_torchrec.preparation.vocabularies.hashing import fold, hash_ints, hash_text


def splitmix64(x: int) -> int:
    x = (x + 0x9E3779B97F4A7C15) % 2**64
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
    return x ^ (x >> 31)


def fnv1a(data: bytes) -> int:
    state = 0xCBF29CE484222325
    for byte in data:
        state = (state ^ byte) * 0x100000001B3 % 2**64
    return state


def test_hashes_equal_their_definitions() -> None:
    ints = [0, 1, -1, 2**63 - 1, -(2**63), 12345]
    assert hash_ints(np.array(ints)).tolist() == [splitmix64(value % 2**64) for value in ints]
    assert splitmix64(0) == 0xE220A8397B1DCDAF  # first output of the published generator from seed 0
    texts = ["", "a", "foobar", "héllo", "x" * 1000, None, "a"]
    expected = [splitmix64(fnv1a((text or "").encode())) for text in texts]
    assert fnv1a(b"foobar") == 0x85944171F73967E8  # published test vector
    assert hash_text(pa.array(texts)).tolist() == expected
    assert hash_text(pa.array(texts).slice(2, 3)).tolist() == expected[2:5]
    assert hash_text(pa.array([], pa.string())).tolist() == []


def test_folded_hashes_fill_all_rows_but_the_missing_one() -> None:
    ids = fold(hash_ints(np.arange(20_000)), 101)
    counts = np.bincount(ids, minlength=101)
    assert counts[0] == 0
    assert len(counts) == 101
    assert abs(counts[1:] - 200).max() < 75  # five standard deviations of 14


def rows_of(numbers: Any, **also: Any) -> Rows:
    """Rows that have nothing but their numbers and some raw columns."""
    return Rows(
        numbers=numbers,
        label=np.zeros(len(numbers), np.float32),
        dense=np.zeros((len(numbers), 0)),
        sparse=(),
        also={name: pa.array(values) for name, values in also.items()},
    )


def test_assignments() -> None:
    numbers = np.arange(1, 100_001)
    assert not Whole("train")(rows_of(numbers)).any()
    by_hash = ByHash("train", (("val", 0.1), ("test", 0.2)))
    place = by_hash(rows_of(numbers))
    assert by_hash.splits == ("val", "test", "train")
    np.testing.assert_allclose(np.bincount(place) / len(numbers), [0.1, 0.2, 0.7], atol=0.006)
    np.testing.assert_array_equal(by_hash.of_numbers(numbers[500:600]), place[500:600])
    uniform = [splitmix64(int(number)) / 2**64 for number in numbers[:100]]
    assert place[:100].tolist() == [0 if u < 0.1 else 1 if u < 0.1 + 0.2 else 2 for u in uniform]
    by_position = ByPosition((("train", 6), ("val", 8)), "test")
    assert [by_position.splits[i] for i in by_position(rows_of(np.arange(1, 10)))] == ["train"] * 6 + ["val"] * 2 + [
        "test"
    ]


def test_shares_of_everything_are_refused() -> None:
    with pytest.raises(ValueError, match="split shares must be at least 0 and sum to less than 1"):
        ByHash("train", (("val", 0.5), ("test", 0.5)))
