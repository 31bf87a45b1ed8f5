"""Several labels, weights of rows and weights of ids, from files to batches: against the rows one by one."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dlrm_torchrec.datasets.ablation import without
from dlrm_torchrec.datasets.batch import Batch
from dlrm_torchrec.datasets.open import first_outputs
from dlrm_torchrec.datasets.prepared.manifest import Manifest
from dlrm_torchrec.datasets.prepared.parquet import ParquetStream
from dlrm_torchrec.datasets.prepared.synthesis import MultiHot
from tests.rich_data import RATINGS, RICH, Row, write_rich

LABELS = ("click", "buy")


def rows_of(batch: Batch) -> list[Row]:
    """The real rows of a batch, as they were drawn; unknown labels are None."""
    rows = []
    names = batch.sparse_features.keys()
    labels = batch.labels if batch.labels.dim() == 2 else batch.labels[:, None]
    assert batch.weights is not None
    bags = {}
    for name in names:
        jagged = batch.sparse_features[name]
        sizes = jagged.lengths().tolist()
        weights = jagged.weights_or_none()
        bags[name] = jagged.values().split(sizes), None if weights is None else weights.split(sizes)
    for i in range(batch.num_rows):
        row: Row = {name: None if math.isnan(v) else v for name, v in zip(LABELS, labels[i].tolist(), strict=False)}
        row |= {"importance": batch.weights[i].item()}
        row |= dict(zip(("x", "y"), batch.dense_features[i].tolist(), strict=True))
        for name in names:
            ids, weights = bags[name]
            row[name] = ids[i].tolist()
            row[f"{name} weights"] = None if weights is None else weights[i].tolist()
        rows.append(row)
    assert batch.weights[batch.num_rows :].abs().sum() == 0
    return rows


def expected(row: Row, *, weighted: bool = True) -> Row:
    kept = {name: row[name] for name in ("click", "buy", "importance", "x", "y")}
    for name in ("item", "city", "tags", "history"):
        kept[name] = row[name] if isinstance(row[name], list) else [row[name]]
        kept[f"{name} weights"] = row.get(f"{name} weights", [1.0] * len(kept[name])) if weighted else None
    return kept


def stream(folder: Path, rank: int = 0, world_size: int = 1, **options: Any) -> ParquetStream:
    return ParquetStream(
        str(folder), "train", global_batch_size=24, rank=rank, world_size=world_size, lanes=2, **options
    )


@pytest.mark.parametrize("shuffle", [False, True])
def test_every_row_with_its_labels_and_weights_on_any_number_of_ranks(tmp_path: Path, shuffle: bool) -> None:
    drawn = write_rich(tmp_path, rows=211)["train"]
    alone = [rows_of(batch) for batch in stream(tmp_path, shuffle=shuffle).batches()]
    found = [row for rows in alone for row in rows]
    assert sorted(found, key=lambda row: row["x"]) == sorted(map(expected, drawn), key=lambda row: row["x"])
    assert [row["x"] for row in found] != sorted(row["x"] for row in found)
    for step, both in enumerate(zip(*(stream(tmp_path, r, 2, shuffle=shuffle).batches() for r in (0, 1)), strict=True)):
        assert rows_of(both[0]) + rows_of(both[1]) == alone[step]
    resumed = [rows_of(batch) for batch in stream(tmp_path, shuffle=shuffle).batches(start_step=5)]
    assert resumed == alone[5:]


def test_numbers_are_read_as_they_are(tmp_path: Path) -> None:
    drawn = write_rich(tmp_path, RATINGS)["train"]
    found = [row["click"] for batch in stream(tmp_path, shuffle=False).batches() for row in rows_of(batch)]
    assert sorted(found) == sorted(row["rating"] for row in drawn)
    assert len(set(found)) == 5


def test_outputs_begin_at_the_means_of_numbers_in_the_rows_read_first(tmp_path: Path) -> None:
    spec = replace(RICH, target="number")
    assert first_outputs(str(tmp_path), RICH) == first_outputs(str(tmp_path), spec) == [0.0, 0.0]
    rows = write_rich(tmp_path, RICH)["train"]
    assert first_outputs(str(tmp_path), RICH) == [0.0, 0.0]
    first = [*rows[:51], *rows[100:151]]  # the first row group of each of two files
    known = [row["buy"] for row in first if row["buy"] is not None]
    expected_means = [sum(row["click"] for row in first) / len(first), sum(known) / len(known)]
    assert first_outputs(str(tmp_path), spec) == pytest.approx(expected_means)
    for file in ("train-0.parquet", "train-1.parquet"):
        table = pq.read_table(tmp_path / file)
        none = pa.array([math.nan] * len(table), pa.float32())
        pq.write_table(table.set_column(table.schema.get_field_index("buy"), "buy", none), tmp_path / file)
    with pytest.raises(ValueError, match="each label must have values in the first training rows: got none of 'buy'"):
        first_outputs(str(tmp_path), spec)


def test_bags_made_while_reading_have_weights_of_1(tmp_path: Path) -> None:
    drawn = write_rich(tmp_path)["train"]
    manifest = Manifest.load(str(tmp_path))
    multi_hot = MultiHot(sizes={"city": 3}, distribution="uniform", generator="counter", seed=0)
    Manifest(spec=multi_hot.applied(RICH), splits=manifest.splits, multi_hot=multi_hot).save(str(tmp_path))
    found = [row for batch in stream(tmp_path, shuffle=False).batches() for row in rows_of(batch)]
    by_x = {row["x"]: expected(row) for row in drawn}
    for row in found:
        assert row["city"][0] == by_x[row["x"]]["city"][0]
        assert row["city weights"] == [1.0] * 3
        for name in ("tags", "tags weights", "history", "history weights", "item weights"):
            assert row[name] == by_x[row["x"]][name]


def test_a_feature_that_is_left_out_keeps_the_weights_of_the_others(tmp_path: Path) -> None:
    write_rich(tmp_path)
    batch = next(iter(stream(tmp_path, shuffle=False).batches()))
    for before, after in zip(rows_of(batch), rows_of(without(batch, "tags", RICH)), strict=True):
        assert after == before | {"tags": [0], "tags weights": [1.0]}


BROKEN = [
    ("click", [math.nan, 1.0], "label 'click' of .* must be 0 or 1: got nan"),
    ("buy", [2.0, 1.0], "label 'buy' of .* must be 0 or 1: got 2"),
    ("importance", [-1.0, 1.0], "weight 'importance' of .* must be finite and at least 0: got -1"),
    ("importance", [math.nan, 1.0], "weight 'importance' of .* must be finite and at least 0: got nan"),
    ("tags weights", [[1.0], [1.0, 2.0]], "'tags weights' of .* must hold one weight for each id of its row: got 1"),
    ("tags weights", [[1.0, math.inf], [1.0]], "column 'tags weights' of .* must hold finite float32s: got inf"),
    ("tags weights", [1.0, 2.0], "column 'tags weights' of .* must be a list of numbers per row: got double"),
    ("tags weights", None, "must have the column 'tags weights' of its spec"),
]


@pytest.mark.parametrize(("name", "values", "message"), BROKEN)
def test_what_breaks_the_spec_is_named(tmp_path: Path, name: str, values: list[Any] | None, message: str) -> None:
    columns: dict[str, Any] = {
        "click": [0.0, 1.0], "buy": [None, 1.0], "importance": [0.0, 2.0], "x": [0.0, 0.0], "y": [0.0, 0.0],
        "item": [1, 2], "city": [3, 4], "tags": [[1, 2], [3]], "history": [[], [1]],
        "tags weights": [[1.0, 2.0], [3.0]],
    }  # fmt: skip
    columns[name] = values
    table = pa.table({key: pa.array(value) for key, value in columns.items() if value is not None})
    pq.write_table(table, tmp_path / "a.parquet")
    split = {"rows": 2, "files": [{"path": "a.parquet", "rows": 2}]}
    Manifest(spec=RICH, splits={}).save(str(tmp_path))
    data = json.loads((tmp_path / "dataset.json").read_text()) | {"splits": {"train": split}}
    (tmp_path / "dataset.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match=message):
        list(stream(tmp_path, shuffle=False).batches())
