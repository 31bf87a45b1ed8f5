"""One data set in many units: what comes out does not depend on who prepares which of them, or in how much memory."""

from __future__ import annotations

import gzip
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dlrm_torchrec.datasets.prepared.manifest import Manifest
from dlrm_torchrec.preparation.passes import count as count_pass
from dlrm_torchrec.preparation.prepare import Source, prepare
from dlrm_torchrec.preparation.readers.columns import Columns
from dlrm_torchrec.preparation.readers.raw_criteo import CriteoReader
from dlrm_torchrec.preparation.readers.raw_parquet import ParquetReader
from dlrm_torchrec.preparation.splits import LastPart, Whole
from dlrm_torchrec.preparation.vocabularies.runs import write_run
from dlrm_torchrec.preparation.work import budget
from dlrm_torchrec.schema import DatasetSpec
from tests.preparation import criteo_files
from tests.preparation.prepared_folders import HASHED, MIXED, contents, write_raw
from tests.preparation.test_prepare_tables import SPEC, as_csv, as_parquet, random_rows, reference, text_reader

UNIT_BYTES = 40_000


def table(folder: Path, split: str) -> pa.Table:
    files = Manifest.load(str(folder)).splits[split].files
    return pa.concat_tables([pq.read_table(folder / file.path) for file in files])


def test_any_number_of_workers_writes_the_same_folder(tmp_path: Path) -> None:
    sources = write_raw(tmp_path)
    for workers in (1, 2, 3):
        manifest = prepare(
            MIXED, sources, str(tmp_path / str(workers)), workers=workers, unit_bytes=UNIT_BYTES, row_group_rows=100
        )
    assert len(manifest.splits["train"].files) > 10
    one, two, three = (contents(tmp_path / str(workers)) for workers in (1, 2, 3))
    assert one == two == three
    assert {path.split("/")[0] for path in one} == {
        "train", "val", "test", "vocab", "dataset.json", "report.json", "quarantine.tsv"
    }  # fmt: skip


def test_units_hold_the_rows_of_the_whole_in_order(tmp_path: Path) -> None:
    sources = write_raw(tmp_path)
    for name, unit_bytes in (("whole", 10**9), ("units", UNIT_BYTES)):
        prepare(MIXED, sources, str(tmp_path / name), unit_bytes=unit_bytes)
    for split in ("train", "val", "test"):
        assert table(tmp_path / "units", split).equals(table(tmp_path / "whole", split))
    for path in ("quarantine.tsv", "report.json"):
        assert (tmp_path / "units" / path).read_bytes() == (tmp_path / "whole" / path).read_bytes()
    lines = [line.split("\t")[:2] for line in (tmp_path / "units/quarantine.tsv").read_text().splitlines()[1:]]
    bad = [
        [source.path, str(number)]
        for source in sources
        for number in criteo_files.read(Path(source.path).read_bytes()).bad
    ]
    assert [line for line in lines if line in bad] == bad
    vocabularies = {path: data for path, data in contents(tmp_path / "units").items() if path.startswith("vocab/")}
    assert len(vocabularies) == 3
    assert vocabularies.items() <= contents(tmp_path / "whole").items()


@pytest.mark.parametrize("form", ["csv", "parquet"])
@pytest.mark.parametrize("workers", [1, 2])
def test_tables_in_units_equal_the_reference(tmp_path: Path, form: str, workers: int) -> None:
    train, val = random_rows(900), random_rows(200, seed=1)
    for row in train + val:
        row["tags"] = [] if row["tags"] == [None] else row["tags"]
    columns = Columns(spec=SPEC, negative_label="no")
    sources = []
    for name, rows in (("train", train), ("val", val)):
        path = tmp_path / f"{name}.{form}"
        if form == "csv":
            path.write_bytes(b"\n\n" + as_csv(rows))
        else:
            as_parquet(rows, path)
        reader = text_reader(path, columns) if form == "csv" else ParquetReader(columns=columns)
        sources.append(Source(path=str(path), reader=reader, assignment=Whole(name)))
    manifest = prepare(SPEC, sources, str(tmp_path / "out"), workers=workers, unit_bytes=10_000, row_group_rows=64)
    assert len(manifest.splits["train"].files) == {"csv": 5, "parquet": 3}[form]
    assert table(tmp_path / "out", "train").to_pylist() == reference(train, train)
    assert table(tmp_path / "out", "val").to_pylist() == reference(val, train)
    assert manifest.report["headers"] == (2 if form == "csv" else 0)


@pytest.mark.parametrize("first", [b"", b"\n" * 30])
def test_the_header_counts_once_wherever_it_lies(tmp_path: Path, first: bytes) -> None:
    rows = [row | {"tags": ["t"]} for row in random_rows(40)]
    (tmp_path / "log.csv").write_bytes(first + as_csv(rows) + as_csv(rows[:0]))
    reader = text_reader(tmp_path / "log.csv", Columns(spec=SPEC))
    source = Source(path=str(tmp_path / "log.csv"), reader=reader, assignment=Whole("train"))
    manifest = prepare(SPEC, [source], str(tmp_path / "out"), unit_bytes=20, max_bad_share=0.5)
    assert table(tmp_path / "out", "train").to_pylist() == reference(rows, rows)
    assert (manifest.report["headers"], manifest.report["blank_lines"]) == (1, len(first))
    assert (tmp_path / "out/quarantine.tsv").read_text().splitlines()[1].split("\t")[1] == str(len(first) + 42)


@pytest.mark.parametrize("parts", [1, 7])
@pytest.mark.parametrize("pack", ["plain", "gz"])
def test_the_last_part_is_held_out(tmp_path: Path, parts: int, pack: str) -> None:
    sources = write_raw(tmp_path)
    data = criteo_files.content(np.random.default_rng(3), 103)
    path = tmp_path / "last"
    path.write_bytes(gzip.compress(data) if pack == "gz" else data)
    last = replace(sources[0], path=str(path), assignment=LastPart(parts))
    manifest = prepare(HASHED, [sources[0], last], str(tmp_path / "out"), unit_bytes=5000)
    before = prepare(HASHED, [sources[0]], str(tmp_path / "before")).splits["train"].rows
    rows = {name: split.rows for name, split in manifest.splits.items()}
    held_out = 103 // parts
    assert rows == {"train": before + 103 - held_out, "val": held_out - held_out // 2, "test": held_out // 2}


@pytest.mark.parametrize("spec", [MIXED, SPEC], ids=["integers", "text"])
def test_counts_that_outgrow_their_memory_are_spilled(
    tmp_path: Path, spec: DatasetSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    if spec is MIXED:
        sources = write_raw(tmp_path)
    else:
        (tmp_path / "log.csv").write_bytes(as_csv(random_rows(2000)))
        reader = text_reader(tmp_path / "log.csv", Columns(spec=SPEC), block_bytes=3000)
        sources = [Source(path=str(tmp_path / "log.csv"), reader=reader, assignment=Whole("train"))]
    prepare(spec, sources, str(tmp_path / "large"), memory_bytes=8 << 30)
    spilled: list[int] = []

    def counted(file: Any, tables: Iterable[pa.Table]) -> None:
        spilled.append(1)
        write_run(file, tables)

    monkeypatch.setattr(count_pass, "write_run", counted)
    monkeypatch.setattr(budget, "_MIN_COUNTED_BYTES", 1000)
    prepare(spec, sources, str(tmp_path / "small"), memory_bytes=1 << 20)
    assert len(spilled) > 10 * sum(feature.encoding == "vocab" for feature in spec.sparse)
    assert contents(tmp_path / "small") == contents(tmp_path / "large")


def in_blocks(source: Source, block_bytes: int) -> Source:
    assert isinstance(source.reader, CriteoReader)
    return replace(source, reader=replace(source.reader, block_bytes=block_bytes))


@pytest.mark.parametrize("window", [7, 10**5])
def test_training_rows_are_shuffled_within_windows(tmp_path: Path, window: int) -> None:
    sources = write_raw(tmp_path)
    options: dict[str, Any] = {"unit_bytes": UNIT_BYTES, "row_group_rows": 50}
    plain = prepare(HASHED, sources, str(tmp_path / "plain"), **options)
    for name, seed, block_bytes in (("a", 0, 9000), ("b", 0, 1234), ("c", 1, 9000)):
        blocks = [in_blocks(source, block_bytes) for source in sources]
        shuffled = prepare(HASHED, blocks, str(tmp_path / name), shuffle_window_rows=window, seed=seed, **options)
    first, again, other = (table(tmp_path / name, "train") for name in "abc")
    assert first.equals(again)
    assert not first.equals(other)
    assert table(tmp_path / "a", "val").equals(table(tmp_path / "plain", "val"))
    for before, after in zip(plain.splits["train"].files, shuffled.splits["train"].files, strict=True):
        assert before.path == after.path
        rows = [pq.read_table(tmp_path / name / before.path).to_pylist() for name in ("plain", "a")]
        for start in range(0, before.rows, window):
            was, now = ([tuple(row.values()) for row in part[start : start + window]] for part in rows)
            assert Counter(was) == Counter(now)
        assert before.rows < 10 or rows[0] != rows[1]


def test_a_window_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    sources = write_raw(tmp_path, 8)
    with pytest.raises(ValueError, match="shuffle_window_rows must fit the memory of each of 2 workers"):
        prepare(HASHED, sources, str(tmp_path / "out"), shuffle_window_rows=10**7, workers=2)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "value", "least"),
    [
        ("unit_bytes", 0, 1),
        ("shuffle_window_rows", -1, 0),
        ("seed", -1, 0),
        ("workers", 0, 1),
        ("memory_bytes", 0, 1),
    ],
)
def test_numbers_that_are_too_small_are_refused(tmp_path: Path, name: str, value: int, least: int) -> None:
    options: dict[str, Any] = {name: value}
    with pytest.raises(ValueError, match=f"{name} must be at least {least}: got {value}; raise it"):
        prepare(HASHED, write_raw(tmp_path, 8), str(tmp_path / "out"), **options)
    assert not (tmp_path / "out").exists()


def test_workers_are_as_many_as_memory_and_work_allow() -> None:
    gib, small = 1 << 30, 100
    asked = [(2 * gib, 64), (gib, 3), (small, 2), (2 * gib, None)]
    made = [budget.Budget.of(memory, workers=workers, raw_bytes=small) for memory, workers in asked]
    assert [each.workers for each in made] == [8, 3, 1, 1]
