"""A prepared folder with all that a spec can say: several labels, weights of rows and ids, shared tables, own dims."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dlrm_torchrec.datasets.prepared.manifest import DataFile, Manifest, Split
from dlrm_torchrec.schema import DatasetSpec, DenseFeature, Label, SparseFeature

RICH = DatasetSpec(
    name="rich",
    label="click",
    more_labels=(Label(name="buy"),),
    weight="importance",
    dense=(DenseFeature(name="x"), DenseFeature(name="y")),
    sparse=(
        SparseFeature(name="item", rows=30, table="items"),
        SparseFeature(name="city", rows=20, dim=8),
        SparseFeature(name="tags", rows=50, multi_hot=True, weights="tag_scores"),
        SparseFeature(name="history", rows=30, multi_hot=True, table="items"),
    ),
)
PLAIN = replace(RICH, more_labels=(), weight="", sparse=tuple(replace(f, weights="") for f in RICH.sparse))
RATINGS = replace(PLAIN, target="number", weight="importance")

Row = dict[str, Any]


def draw_rows(count: int, seed: int) -> list[Row]:
    """Rows of ``RICH``; a rating lies between 1 and 5, and ``buy`` is unknown unless ``click`` is 1."""
    random = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        tags, history = (random.integers(0, size, random.integers(0, 4)).tolist() for size in (50, 30))
        x, y = random.normal(size=2).astype(np.float32).tolist()
        click = float(random.random() < 1 / (1 + np.exp(-2 * x)))
        rows.append(
            {
                "click": click,
                "buy": float(random.random() < 1 / (1 + np.exp(-2 * y))) if click else None,
                "rating": float(np.clip(round(3 + x + random.normal()), 1, 5)),
                "importance": float(np.float32(random.choice([0.0, 0.5, 1.0, 3.0]))),
                "x": x,
                "y": y,
                "item": int(random.integers(30)),
                "city": int(random.integers(20)),
                "tags": tags,
                "tags weights": random.normal(size=len(tags)).astype(np.float32).tolist(),
                "history": history,
            }
        )
    return rows


def write_rich(folder: Path, spec: DatasetSpec = RICH, *, rows: int = 200, seed: int = 0) -> dict[str, list[Row]]:
    """A prepared folder of ``rows`` training rows in two files of two row groups; the rows by split.

    A spec of numbers has the ratings as its label ``click``.
    """
    drawn = {"train": draw_rows(rows, seed), "val": draw_rows(300, seed + 1)}
    splits = {}
    for split, own in drawn.items():
        if spec.target == "number":
            own = drawn[split] = [row | {"click": row["rating"]} for row in own]
        half = len(own) // 2
        for number, part in enumerate((own[:half], own[half:])):
            pq.write_table(_table(part, spec), folder / f"{split}-{number}.parquet", row_group_size=1 + half // 2)
        files = (
            DataFile(path=f"{split}-0.parquet", rows=half),
            DataFile(path=f"{split}-1.parquet", rows=len(own) - half),
        )
        splits[split] = Split(files=files)
    Manifest(spec=spec, splits=splits).save(str(folder))
    return drawn


def _table(rows: list[Row], spec: DatasetSpec) -> pa.Table:
    kinds = {"item": pa.int32(), "city": pa.int32(), "tags": pa.list_(pa.int32()), "history": pa.list_(pa.int32())}
    kinds["tags weights"] = pa.list_(pa.float32())
    return pa.table(
        {name: pa.array([r[name] for r in rows], kinds.get(name, pa.float32())) for name in spec.prepared_names}
    )
