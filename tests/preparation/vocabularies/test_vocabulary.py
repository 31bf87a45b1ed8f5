"""Values counted in pieces, spilled, merged and numbered, against a Counter."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dlrm_torchrec.preparation.vocabularies import runs as runs_module
from dlrm_torchrec.preparation.vocabularies import spool
from dlrm_torchrec.preparation.vocabularies.build import build_vocabulary, read_vocabulary
from dlrm_torchrec.preparation.vocabularies.counting import ValueCounter
from dlrm_torchrec.preparation.vocabularies.runs import Run, merge, open_run, write_run
from dlrm_torchrec.preparation.vocabularies.vocabulary import Vocabulary


def count(values: Sequence[object], kind: str, piece: int = 77) -> dict[str, pa.Table]:
    counter = ValueCounter()
    for start in range(0, len(values), piece):
        counter.add(pa.array(values[start : start + piece], kind))
    return counter.take()


def write(folder: Path, counted: Sequence[dict[str, pa.Table]]) -> dict[str, list[Run]]:
    """One file of several runs, read as runs by kind of values."""
    runs: dict[str, list[Run]] = {"numbers": [], "texts": []}
    with (folder / "runs").open("wb") as file:
        for tables in counted:
            for kind, table in tables.items():
                runs[kind].append(partial(open_run, str(folder / "runs"), file.tell()))
                write_run(file, [table])
    return runs


def build(folder: Path, runs: Mapping[str, Sequence[Run]], min_count: int) -> tuple[Vocabulary, list[object]]:
    rows, digest, files = build_vocabulary(
        runs,
        lambda *_: None,
        min_count=min_count,
        folder=str(folder),
        list_path="vocab/a.parquet",
        table_path="work/table",
        scratch_folder=str(folder),
    )
    assert [file.path for file in files[:1]] == ["vocab/a.parquet"]
    vocabulary = Vocabulary.load(rows, digest, [f"{folder}/{file.path}" for file in files[1:]])
    listed = pq.read_table(folder / "vocab/a.parquet")["value"].to_pylist()
    spelled = b"".join(
        value.to_bytes(8, "little", signed=True) if isinstance(value, int) else f"{value}\0".encode()
        for value in listed
    )
    assert digest == hashlib.sha256(spelled).hexdigest()[:16]
    return vocabulary, listed


def expected_values(values: Sequence[object], min_count: int) -> list[object]:
    """By falling count; then whole numbers in their order, and texts in theirs."""
    counts = Counter(value for value in values if value is not None)
    return sorted((v for v in counts if counts[v] >= min_count), key=lambda v: (-counts[v], isinstance(v, str), v))


@pytest.fixture(params=["held", "spilled"])
def small_buffers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With 'spilled', a few kilobytes are too many to be held in memory at once."""
    if request.param == "spilled":
        monkeypatch.setattr(spool, "_HELD_BYTES", 100)
        monkeypatch.setattr(runs_module, "_BATCH_BYTES", 200)
        monkeypatch.setattr(runs_module, "_MERGED_BYTES", 1000)


@pytest.mark.usefixtures("small_buffers")
@pytest.mark.parametrize("kind", ["int64", "string"])
@pytest.mark.parametrize("min_count", [1, 2, 50, 10**6])
def test_vocabulary_equals_a_counter(tmp_path: Path, kind: str, min_count: int) -> None:
    rng = np.random.default_rng(0)
    raw = [None if value == 3 else int(value) - 5 for value in rng.zipf(1.3, 4000) % 500]
    words = ("", "ä", "äb", "value", "value ", "z")
    values = raw if kind == "int64" else [None if v is None else words[v % 6] + "x" * (v % 7) * (v % 3) for v in raw]
    tables = [count(values[start : start + 500], kind) for start in range(0, 4000, 500)]
    vocabulary, listed = build(tmp_path, write(tmp_path, tables), min_count)
    expected = expected_values(values, min_count)
    assert listed == expected
    assert vocabulary.rows == len(expected) + 2
    number = {value: i for i, value in enumerate(expected, start=2)}
    new = ["never", "äc", "valu", "zz"] if kind == "string" else [10**15, -(10**15), 0, 2**63 - 1]
    asked = [*values[:700], *new]
    ids = vocabulary.encode(pa.array([None, *asked, None], kind).slice(1, len(asked)))
    assert ids.tolist() == [0 if value is None else number.get(value, 1) for value in asked]


@pytest.mark.usefixtures("small_buffers")
@pytest.mark.parametrize("fan_in", [2, 3, 100])
def test_merged_runs_are_their_sum(tmp_path: Path, fan_in: int) -> None:
    rng = np.random.default_rng(1)
    pieces = [rng.integers(-(2**63), 2**63 - 1, 50).tolist() + rng.integers(0, 90, 200).tolist() for _ in range(11)]
    runs = write(tmp_path, [count(piece, "int64") for piece in pieces])["numbers"]
    merged = pa.concat_tables(merge(runs, str(tmp_path), fan_in))
    total = Counter(value for piece in pieces for value in piece)
    assert list(zip(*merged.to_pydict().values(), strict=True)) == sorted(total.items())
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_long_runs_of_equal_ends_are_merged(tmp_path: Path) -> None:
    tables = [
        pa.table({"value": range(0, 300_000, step), "count": [step] * (-(-300_000 // step))}) for step in (1, 1, 3)
    ]
    merged = pa.concat_tables(merge(write(tmp_path, [{"numbers": table} for table in tables])["numbers"]))
    assert merged["value"].to_numpy().tolist() == list(range(300_000))
    assert merged["count"].to_numpy().tolist() == [5, 2, 2] * 100_000


def test_many_values_stay_exact(tmp_path: Path) -> None:
    values = [np.arange(start, start + 60_000) * 2654435761 for start in range(0, 400_000, 40_000)]
    counter = ValueCounter()
    for piece in values:
        counter.add(pa.array(piece))
    assert counter.nbytes >= 16 * 400_000
    vocabulary, listed = build(tmp_path, write(tmp_path, [counter.take()]), 2)
    twice = [v * 2654435761 for start in range(40_000, 400_000, 40_000) for v in range(start, start + 20_000)]
    assert listed == sorted(twice)
    assert vocabulary.encode(pa.array(values[0])).tolist() == [1] * 40_000 + list(range(2, 20_002))


def test_empty_vocabulary_knows_nothing(tmp_path: Path) -> None:
    vocabulary, listed = build(tmp_path, {}, 1)
    assert (vocabulary.rows, listed) == (2, [])
    for values in (pa.array([1, None]), pa.array(["a", None])):
        assert vocabulary.encode(values).tolist() == [1, 0]


@pytest.mark.usefixtures("small_buffers")
@pytest.mark.parametrize("min_count", [1, 30])
def test_numbers_and_texts_share_a_vocabulary(tmp_path: Path, min_count: int) -> None:
    """A piece of whole numbers is int64, another piece of the same column is text: 5 and "5" are one value."""
    rng = np.random.default_rng(2)
    pieces: list[list[Any]] = []
    for mixed in (False, True, False, True):
        numbers = (rng.zipf(1.4, 600) % 90 - 5).tolist()
        pieces.append([f"{n}" if n % 3 else f"x{n}" for n in numbers] if mixed else numbers)
    values = [int(v) if str(v).lstrip("-").isdigit() else v for piece in pieces for v in piece]
    counted = [count(piece, "string" if isinstance(piece[0], str) else "int64") for piece in pieces]
    vocabulary, listed = build(tmp_path, write(tmp_path, counted), min_count)
    expected = expected_values(values, min_count)
    assert listed == [str(value) for value in expected]
    number = {value: i for i, value in enumerate(expected, start=2)}
    for kind in ("string", "int64"):
        asked = [v for v in values if kind == "string" or isinstance(v, int)][:800]
        ids = vocabulary.encode(pa.array([str(v) for v in asked] if kind == "string" else asked))
        assert ids.tolist() == [number.get(value, 1) for value in asked]
    again = read_vocabulary(
        str(tmp_path / "vocab/a.parquet"),
        lambda *_: None,
        folder=str(tmp_path / "again"),
        list_path="vocab/a.parquet",
        table_path="work/table",
    )
    assert again[:2] == (vocabulary.rows, vocabulary.digest)
    copy = Vocabulary.load(*again[:2], paths=[f"{tmp_path}/again/{file.path}" for file in again[2][1:]])
    words = pa.array([str(v) for v in values])
    assert copy.encode(words).tolist() == vocabulary.encode(words).tolist()


def test_runs_are_read_again_and_again(tmp_path: Path) -> None:
    def halves() -> Iterator[pa.Table]:
        yield count([1, 2], "int64")["numbers"]
        yield count([3, 3], "int64")["numbers"]

    with (tmp_path / "runs").open("wb") as file:
        file.write(b"before")
        write_run(file, halves())
    for _ in range(2):
        assert pa.concat_tables(open_run(str(tmp_path / "runs"), 6)).to_pydict() == {
            "value": [1, 2, 3],
            "count": [1, 1, 2],
        }
