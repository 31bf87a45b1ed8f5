"""Criteo preparation against a slow row-by-row reading, on whole files and on damaged ones."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from dlrm_torchrec.datasets.criteo import DENSE_NAMES, KAGGLE_ROWS, SPARSE_NAMES, criteo_raw_spec
from dlrm_torchrec.datasets.prepared.manifest import Manifest
from dlrm_torchrec.preparation.passes.quarantine import unescape
from dlrm_torchrec.preparation.prepare import Source, prepare
from dlrm_torchrec.preparation.readers.raw_criteo import CriteoReader
from dlrm_torchrec.preparation.splits import Whole
from tests.preparation import criteo_files, criteo_mutations
from tests.preparation.criteo_files import MAX_LINE, Reading

HASHED = criteo_raw_spec("hashed", KAGGLE_ROWS, "hash", max_ind_range=1000)


def sources(path: Path, block_bytes: int = 1 << 20, max_ind_range: int = 1 << 32) -> list[Source]:
    reader = CriteoReader(block_bytes=block_bytes, max_line_bytes=MAX_LINE, max_ind_range=max_ind_range)
    return [Source(path=str(path), reader=reader, assignment=Whole("train"))]


def rows(folder: Path, split: str = "train") -> dict[str, np.ndarray]:
    table = pq.ParquetDataset([folder / file.path for file in Manifest.load(str(folder)).splits[split].files]).read()
    return {name: table[name].to_numpy() for name in table.column_names}


def expect_values(folder: Path, expected: Reading, ids: list[list[int]]) -> None:
    got = rows(folder)
    np.testing.assert_array_equal(got["label"], [label for _, label, _, _ in expected.good])
    for i, name in enumerate(DENSE_NAMES):
        raw = np.array([dense[i] or 0.0 for _, _, dense, _ in expected.good])
        np.testing.assert_array_equal(got[name], np.log1p(np.maximum(raw, 0.0)).astype(np.float32))
    for i, name in enumerate(SPARSE_NAMES):
        np.testing.assert_array_equal(got[name], ids[i])
        assert got[name].dtype == np.int32


def hashed_ids(expected: Reading) -> list[list[int]]:
    return [
        [criteo_files.hashed(sparse[i], feature.rows) for *_, sparse in expected.good]
        for i, feature in enumerate(HASHED.sparse)
    ]


def vocabulary_ids(expected: Reading, min_count: int, max_ind_range: int = 1 << 32) -> list[list[int]]:
    columns = []
    for i in range(26):
        found = [sparse[i] for *_, sparse in expected.good]
        raw = [None if value is None else value % max_ind_range for value in found]
        counts = Counter(value for value in raw if value is not None)
        ordered = sorted((value for value in counts if counts[value] >= min_count), key=lambda v: (-counts[v], v))
        number = {value: i + 2 for i, value in enumerate(ordered)}
        columns.append([0 if value is None else number.get(value, 1) for value in raw])
    return columns


def expect_quarantine(folder: Path, source: Path, expected: Reading) -> None:
    header, *lines = (folder / "quarantine.tsv").read_text().splitlines()
    assert header == "source\tline\treason\traw"
    kept = [line.split("\t") for line in lines]
    assert [(int(number), unescape(raw)) for _, number, _, raw in kept] == list(expected.bad.items())
    assert {name for name, *_ in kept} <= {str(source)}
    report = json.loads((folder / "report.json").read_text())
    assert report["rows_in"] == len(expected.good) + len(expected.bad)
    assert report["rows_written"] == len(expected.good)
    assert report["rows_quarantined"] == len(expected.bad)
    assert report["blank_lines"] == expected.blanks
    assert report["reasons"] == dict(Counter(reason for _, _, reason, _ in kept))


@pytest.mark.timeout(300)
@pytest.mark.parametrize("part", range(10))
def test_damaged_files_lose_no_good_row(tmp_path: Path, part: int) -> None:
    damaged = 0
    for seed in range(part * 50, part * 50 + 50):
        rng = np.random.default_rng(seed)
        path, output = tmp_path / f"{seed}.txt", tmp_path / str(seed)
        path.write_bytes(criteo_mutations.mutate(rng, criteo_files.content(rng, int(rng.integers(1, 40)))))
        expected = criteo_files.read(path.read_bytes())
        source = sources(path, block_bytes=int(rng.choice([64, 500, 5000, 1 << 20])))
        max_bad_share = float(rng.choice([0.01, 1.0]))
        encoding = str(rng.choice(["hash", "vocab"]))
        spec = HASHED if encoding == "hash" else criteo_raw_spec("vocab", KAGGLE_ROWS, "vocab")
        total = len(expected.good) + len(expected.bad)
        if len(expected.bad) > max_bad_share * total:
            with pytest.raises(ValueError, match="malformed rows must be at most"):
                prepare(spec, source, str(output), max_bad_share=max_bad_share)
            assert not (output / "dataset.json").exists()
        elif not expected.good:
            with pytest.raises(ValueError, match="split 'train' must have rows"):
                prepare(spec, source, str(output), max_bad_share=max_bad_share)
        elif len({label for _, label, *_ in expected.good}) == 1:
            with pytest.raises(ValueError, match="labels of split 'train' must have both classes"):
                prepare(spec, source, str(output), max_bad_share=max_bad_share)
        else:
            prepare(spec, source, str(output), max_bad_share=max_bad_share)
            ids = hashed_ids(expected) if encoding == "hash" else vocabulary_ids(expected, 1)
            expect_values(output, expected, ids)
        expect_quarantine(output, path, expected)
        damaged += bool(expected.bad)
    assert damaged >= 15  # the mutations do bite


@pytest.mark.parametrize("pack", [bytes, lambda data: gzip.compress(data)])
def test_hash_equals_the_row_by_row_reading(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "train"
    path.write_bytes(pack(criteo_files.content(np.random.default_rng(0), 700)))
    prepare(HASHED, sources(path), str(tmp_path / "out"))
    expected = criteo_files.read(path.read_bytes())
    assert len(expected.good) == 700
    expect_values(tmp_path / "out", expected, hashed_ids(expected))


@pytest.mark.parametrize(("min_count", "max_ind_range"), [(1, 1 << 32), (3, 1 << 32), (2, 50)])
def test_vocabulary_equals_the_row_by_row_reading(tmp_path: Path, min_count: int, max_ind_range: int) -> None:
    path = tmp_path / "train.txt"
    path.write_bytes(criteo_files.content(np.random.default_rng(1), 700))
    spec = criteo_raw_spec("vocab", KAGGLE_ROWS, "vocab", min_count=min_count)
    manifest = prepare(spec, sources(path, max_ind_range=max_ind_range), str(tmp_path / "out"))
    expected = criteo_files.read(path.read_bytes())
    ids = vocabulary_ids(expected, min_count, max_ind_range)
    expect_values(tmp_path / "out", expected, ids)
    for feature, column in zip(manifest.spec.sparse, ids, strict=True):
        saved = pq.read_table(tmp_path / "out" / "vocab" / f"{feature.name}.parquet")["value"].to_pylist()
        assert feature.rows == len(saved) + 2 == max(*column, 1) + 1


def test_output_does_not_depend_on_the_block_size(tmp_path: Path) -> None:
    path = tmp_path / "train.txt"
    rng = np.random.default_rng(2)
    data = criteo_files.content(rng, 300)
    for mutation in (criteo_mutations.long_line, criteo_mutations.non_hex, criteo_mutations.nul_bytes):
        data = mutation(rng, data)
    path.write_bytes(data)
    spec = criteo_raw_spec("vocab", KAGGLE_ROWS, "vocab")
    outputs = []
    for block_bytes in (64, 1000, 30_000, 1 << 23):
        folder = tmp_path / str(block_bytes)
        manifest = prepare(spec, sources(path, block_bytes), str(folder), max_bad_share=0.1, row_group_rows=128)
        outputs.append((manifest, (folder / "quarantine.tsv").read_bytes()))
    assert all(output == outputs[0] for output in outputs)
    assert outputs[0][0].splits["train"].files[0].sha256 is not None


def test_files_without_labels(tmp_path: Path) -> None:
    labelled, unlabelled = tmp_path / "train.txt", tmp_path / "test.txt"
    rng = np.random.default_rng(3)
    labelled.write_bytes(criteo_files.content(rng, 50))
    unlabelled.write_bytes(criteo_files.content(rng, 20, labelled=False))
    extra = Source(path=str(unlabelled), reader=CriteoReader(labelled=False), assignment=Whole("unlabelled"))
    manifest = prepare(HASHED, [*sources(labelled), extra], str(tmp_path / "out"))
    assert {name: split.rows for name, split in manifest.splits.items()} == {"train": 50, "unlabelled": 20}
    assert [source["labelled"] for source in manifest.report["sources"]] == [True, False]
    got, expected = rows(tmp_path / "out", "unlabelled"), criteo_files.read(unlabelled.read_bytes(), labelled=False)
    assert not got["label"].any()
    np.testing.assert_array_equal(
        got["cat_25"], [criteo_files.hashed(sparse[25], HASHED.sparse[25].rows) for *_, sparse in expected.good]
    )


def test_unlabelled_rows_are_refused_as_training_rows(tmp_path: Path) -> None:
    (tmp_path / "test.txt").write_bytes(b"")
    source = Source(path=str(tmp_path / "test.txt"), reader=CriteoReader(labelled=False), assignment=Whole("train"))
    with pytest.raises(ValueError, match=r"must have labels to go to \['train'\]"):
        prepare(HASHED, [source], str(tmp_path / "out"))
