"""Small prepared folders written by hand, as a user may."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dlrm_torchrec.datasets.prepared.manifest import DataFile, Manifest, Split
from dlrm_torchrec.schema import DatasetSpec, DenseFeature, SparseFeature

SPEC = DatasetSpec(
    name="small",
    label="click",
    dense=(DenseFeature(name="x"), DenseFeature(name="y")),
    sparse=(
        SparseFeature(name="item", rows=30),
        SparseFeature(name="tags", rows=50, multi_hot=True, pooling_factor=1.5),
    ),
)


def write_prepared(
    folder: Path, groups: dict[str, list[list[int]]], *, seed: int = 0, signal: float = 3.0, spec: DatasetSpec = SPEC
) -> Path:
    """A prepared folder; ``groups`` gives, per split and file, the rows of each row group.

    P(click) is sigmoid(signal * x): with ``signal`` 0 the labels say nothing.
    """
    random = np.random.default_rng(seed)
    splits = {}
    for split, files in groups.items():
        (folder / split).mkdir(parents=True)
        entries = []
        for number, row_groups in enumerate(files):
            path = f"{split}/part-{number}.parquet"
            tables = [_table(random, rows, signal) for rows in row_groups]
            with pq.ParquetWriter(folder / path, tables[0].schema) as writer:
                for table in tables:
                    writer.write_table(table)
            entries.append(DataFile(path=path, rows=sum(row_groups)))
        splits[split] = Split(files=tuple(entries))
    Manifest(spec=spec, splits=splits).save(str(folder))
    return folder


def _table(random: np.random.Generator, rows: int, signal: float) -> pa.Table:
    x = random.normal(size=rows).astype(np.float32)
    tags = [random.integers(0, 50, random.integers(0, 4)).tolist() for _ in range(rows)]
    return pa.table(
        {
            "click": (random.random(rows) < 1 / (1 + np.exp(-signal * x))).astype(np.float32),
            "x": x,
            "y": random.normal(size=rows).astype(np.float32),
            "item": pa.array(random.integers(0, 30, rows), pa.int32()),
            "tags": pa.array(tags, pa.list_(pa.int32())),
        }
    )
