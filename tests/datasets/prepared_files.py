"""Small prepared folders, written by hand as a user may."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dlrm_torchrec.schema import DatasetSpec, DenseFeature, SparseFeature
from tests.datasets.batches import Row

SPEC = DatasetSpec(
    name="small",
    label="click",
    dense=(DenseFeature(name="age"), DenseFeature(name="price")),
    sparse=(
        SparseFeature(name="user", rows=1_000_000),
        SparseFeature(name="history", rows=50, encoding="vocab", multi_hot=True),
        SparseFeature(name="shop", rows=30, encoding="hash"),
    ),
)


def make_table(num_rows: int, first: int = 0) -> pa.Table:
    """Rows that can be told apart: ``user`` counts up from ``first``; every third ``history`` is empty."""
    random = np.random.default_rng(first)
    lengths = random.integers(0, 5, num_rows) * (np.arange(num_rows) % 3 > 0)
    history = [random.integers(0, 50, n).tolist() for n in lengths]
    return pa.table(
        {
            "shop": pa.array(random.integers(0, 30, num_rows), pa.int8()),
            "click": pa.array(random.integers(0, 2, num_rows), pa.int8()),
            "price": pa.array(random.standard_normal(num_rows), pa.float32()),
            "user": pa.array(np.arange(first, first + num_rows), pa.int32()),
            "history": pa.array(history, pa.list_(pa.int32())),
            "age": pa.array(random.standard_normal(num_rows), pa.float64()),
        }
    )


def write_file(path: Path, groups: Sequence[int], first: int = 0) -> pa.Table:
    """A Parquet file with row groups of these sizes."""
    table, offset = make_table(sum(groups), first), 0
    with pq.ParquetWriter(path, table.schema) as writer:
        for rows in groups:
            writer.write_table(table.slice(offset, rows), row_group_size=max(1, rows))
            offset += rows
    return table


def write_manifest(folder: Path, files: dict[str, int], spec: DatasetSpec = SPEC, split: str = "train") -> None:
    listed: list[dict[str, Any]] = [{"path": path, "rows": rows} for path, rows in files.items()]
    splits = {split: {"rows": sum(files.values()), "files": listed}}
    (folder / "dataset.json").write_text(json.dumps({"format": 2, "spec": spec.to_json(), "splits": splits}))


def write_folder(folder: Path, files: Sequence[Sequence[int]]) -> pa.Table:
    """A prepared folder: per file the sizes of its row groups; returns all its rows in order."""
    tables, first = [], 0
    for number, groups in enumerate(files):
        tables.append(write_file(folder / f"part-{number}.parquet", groups, first))
        first += sum(groups)
    write_manifest(folder, {f"part-{number}.parquet": sum(groups) for number, groups in enumerate(files)})
    return pa.concat_tables(tables)


def reference_rows(table: pa.Table, spec: DatasetSpec = SPEC) -> list[Row]:
    """The rows as plain values, by a loop over rows, in the form of ``batches.rows_of``."""
    return [
        (
            float(row[spec.label]),
            tuple(float(np.float32(row[feature.name])) for feature in spec.dense),
            tuple(tuple(row[f.name]) if f.multi_hot else (row[f.name],) for f in spec.sparse),
        )
        for row in table.to_pylist()
    ]
