"""What the Parquet stream holds in memory: some row groups, whatever the number of rows."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from dlrm_torchrec.datasets.batch import Batch
from dlrm_torchrec.datasets.prepared.manifest import DataFile, Manifest, Split
from dlrm_torchrec.datasets.prepared.parquet import ParquetStream
from dlrm_torchrec.datasets.prepared.writer import SplitWriter
from dlrm_torchrec.preparation.passes.encode import prepared_schema
from dlrm_torchrec.schema import DatasetSpec, DenseFeature, SparseFeature
from tests.datasets.prepared_files import write_folder

GROUP_ROWS, GROUPS = 32_768, 96
SPEC = DatasetSpec(
    name="wide",
    label="click",
    dense=tuple(DenseFeature(name=f"x{i}") for i in range(8)),
    sparse=(
        *(SparseFeature(name=f"id{i}", rows=1000) for i in range(12)),
        SparseFeature(name="list", rows=1000, multi_hot=True, pooling_factor=12),
    ),
)
GROUP_BYTES = GROUP_ROWS * 4 * (1 + 8 + 12 + 12)


def resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def peak_growth(folder: Path, split: str) -> int:
    """How far resident memory rises above its beginning while a split is read."""
    before, peak = resident_bytes(), 0
    stream = ParquetStream(str(folder), split, global_batch_size=2048, shuffle=True)
    for batch in stream.batches():
        assert batch.num_rows == 2048
        peak = max(peak, resident_bytes())
    return peak - before


def test_memory_does_not_grow_with_the_number_of_rows(tmp_path: Path) -> None:
    random, schema = np.random.default_rng(0), prepared_schema(SPEC)
    arrays = [pa.array(random.integers(0, 2, GROUP_ROWS).astype(np.float32))]
    arrays += [pa.array(random.random(GROUP_ROWS, np.float32)) for _ in SPEC.dense]
    arrays += [pa.array(random.integers(0, 1000, GROUP_ROWS, np.int32)) for _ in SPEC.sparse[:-1]]
    ids = pa.array(random.integers(0, 1000, GROUP_ROWS * 12, np.int32))
    arrays.append(pa.ListArray.from_arrays(pa.array(np.arange(GROUP_ROWS + 1, dtype=np.int32) * 12), ids))
    table = pa.table([array.cast(field.type) for array, field in zip(arrays, schema, strict=True)], schema=schema)
    splits = {}
    for split, groups in (("quarter", GROUPS // 4), ("whole", GROUPS)):
        with SplitWriter(str(tmp_path), split, unit=0, schema=schema, row_group_rows=GROUP_ROWS) as writer:
            for _ in range(groups):
                writer.write(table)
        splits[split] = Split(files=tuple(DataFile(path=file.path, rows=rows) for file, rows in writer.files))
    Manifest(spec=SPEC, splits=splits).save(str(tmp_path))

    peak_growth(tmp_path, "quarter")  # what the first pass reserves, later ones use again
    assert peak_growth(tmp_path, "whole") < GROUPS / 2 * GROUP_BYTES


@pytest.mark.parametrize("gpu", [False, True])
def test_batches_lie_in_pinned_memory_where_there_is_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpu: bool
) -> None:
    write_folder(tmp_path, [[30]])
    pinned: dict[int, bool] = {}
    lock = threading.Lock()

    def recorded(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def call(*args: Any, pin_memory: bool = False, **options: Any) -> torch.Tensor:
            tensor = make(*args, **options)
            with lock:
                pinned[tensor.data_ptr()] = pin_memory
            return tensor

        return call

    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    for name in ("zeros", "empty"):
        monkeypatch.setattr(torch, name, recorded(getattr(torch, name)))
    batches = list(ParquetStream(str(tmp_path), "train", global_batch_size=12, shuffle=True).batches())
    assert len(batches) == 3
    for batch in batches:
        assert isinstance(batch, Batch)
        features = batch.sparse_features
        for tensor in (batch.labels, batch.dense_features, features.values(), features.lengths()):
            assert pinned[tensor.data_ptr()] is gpu
