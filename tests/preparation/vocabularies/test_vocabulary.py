"""Values counted in pieces, spilled, merged and numbered, against a Counter."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dlrm_torchrec.preparation.vocabularies import runs as runs_module
from dlrm_torchrec.preparation.vocabularies import spool
from dlrm_torchrec.preparation.vocabularies.build import build_vocabulary
from dlrm_torchrec.preparation.vocabularies.counting import ValueCounter
from dlrm_torchrec.preparation.vocabularies.runs import Run, merge, open_run, write_run
from dlrm_torchrec.preparation.vocabularies.vocabulary import Vocabulary


def count(values: Sequence[object], kind: str, piece: int = 77) -> pa.Table:
    counter = ValueCounter()
    for start in range(0, len(values), piece):
        counter.add(pa.array(values[start : start + piece], kind))
    return counter.take()


def write(folder: Path, tables: Sequence[pa.Table]) -> list[Run]:
    """One file of several runs, read as runs."""
    runs: list[Run] = []
    with (folder / "runs").open("wb") as file:
        for table in tables:
            if len(table):
                runs.append(partial(open_run, str(folder / "runs"), file.tell()))
                write_run(file, [table])
    return runs


def build(folder: Path, runs: Sequence[Run], min_count: int) -> tuple[Vocabulary, list[object]]:
    rows, kind, files = build_vocabulary(
        runs,
        lambda *_: None,
        min_count=min_count,
        folder=str(folder),
        list_path="vocab/a.parquet",
        table_path="work/table",
        scratch_folder=str(folder),
    )
    assert [file.path for file in files[:1]] == ["vocab/a.parquet"]
    vocabulary = Vocabulary.load(rows, kind, [f"{folder}/{file.path}" for file in files[1:]])
    return vocabulary, pq.read_table(folder / "vocab/a.parquet")["value"].to_pylist()


def expected_values(values: Sequence[object], min_count: int) -> list[object]:
    counts = Counter(value for value in values if value is not None)
    return sorted((v for v in counts if counts[v] >= min_count), key=lambda v: (-counts[v], v))


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
    runs = write(tmp_path, [count(piece, "int64") for piece in pieces])
    merged = pa.concat_tables(merge(runs, str(tmp_path), fan_in))
    total = Counter(value for piece in pieces for value in piece)
    assert list(zip(*merged.to_pydict().values(), strict=True)) == sorted(total.items())
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_long_runs_of_equal_ends_are_merged(tmp_path: Path) -> None:
    tables = [
        pa.table({"value": range(0, 300_000, step), "count": [step] * (-(-300_000 // step))}) for step in (1, 1, 3)
    ]
    merged = pa.concat_tables(merge(write(tmp_path, tables)))
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
    vocabulary, listed = build(tmp_path, [], 1)
    assert (vocabulary.rows, listed) == (2, [])
    for values in (pa.array([1, None]), pa.array(["a", None])):
        assert vocabulary.encode(values).tolist() == [1, 0]


def test_one_column_of_two_types_is_refused(tmp_path: Path) -> None:
    counter = ValueCounter()
    counter.add(pa.array([1]))
    with pytest.raises(ValueError, match=r"must have one type in all files: got \['int64', 'string'\]"):
        counter.add(pa.array(["1"]))
    runs = write(tmp_path, [count([1], "int64"), count(["1"], "string")])
    with pytest.raises(ValueError, match=r"must have one type in all files: got \['int64', 'string'\]"):
        list(merge(runs))
    vocabulary, _ = build(tmp_path, runs[:1], 1)
    with pytest.raises(ValueError, match="must have one type in all files: got string after int64"):
        vocabulary.encode(pa.array(["1"]))


def test_runs_are_read_again_and_again(tmp_path: Path) -> None:
    def halves() -> Iterator[pa.Table]:
        yield count([1, 2], "int64")
        yield count([3, 3], "int64")

    with (tmp_path / "runs").open("wb") as file:
        file.write(b"before")
        write_run(file, halves())
    for _ in range(2):
        assert pa.concat_tables(open_run(str(tmp_path / "runs"), 6)).to_pydict() == {
            "value": [1, 2, 3],
            "count": [1, 1, 2],
        }
