"""Files of single tables, to exchange with other programs: ``<table>.safetensors`` or ``<table>.parquet``.

A safetensors file holds ``weight`` (rows, dim). A Parquet file holds one row per row of the table, in order, with two
columns: ``id``, int64, and ``vector``, a list of dim floats.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from dlrm_torchrec.embeddings.config import TableFormat

ReadRows = Callable[[int, int], torch.Tensor]  # (first row, last row + 1) -> rows

_ROW_GROUP_ROWS = 1 << 16


def write_table(folder: str, name: str, weights: torch.Tensor, format: TableFormat) -> str:
    """The path of the written file with ``weights`` (rows, dim); the file appears only when it is complete."""
    path = os.path.join(folder, f"{name}.{format}")
    partial = f"{path}.partial"
    if format == "safetensors":
        save_file({"weight": weights}, partial)
    else:
        _write_parquet(partial, weights)
    os.replace(partial, path)
    return path


def open_table(folder: str, name: str, shape: Sequence[int]) -> ReadRows | None:
    """A function that reads rows of a table of ``shape`` from its file in ``folder``; None when it has no weight there.

    Raises ValueError when the file holds a table of another shape, or when there is a file in each format.
    """
    candidates = [os.path.join(folder, f"{name}.{format}") for format in get_args(TableFormat)]
    paths = [path for path in candidates if os.path.exists(path)]
    if len(paths) > 1:
        raise ValueError(f"table {name} must have one file in {folder}: got {paths}; remove one of them")
    if not paths:
        return None
    if paths[0] == candidates[0] and not _has_weight(paths[0]):
        return None
    read, stored = (_open_safetensors if paths[0] == candidates[0] else _open_parquet)(paths[0])
    if stored != tuple(shape):
        raise ValueError(
            f"{paths[0]} must hold a table of shape {tuple(shape)}: got {stored}; export it again from a run with the "
            "same data set, dim and kind of tables"
        )
    return read


def check_folder(folder: str, tables: Sequence[str]) -> None:
    """Raises ValueError when ``folder`` has a weight of none of the tables."""
    paths = [os.path.join(folder, f"{table}.{format}") for table in tables for format in get_args(TableFormat)]
    if not any(os.path.exists(path) and (path.endswith(".parquet") or _has_weight(path)) for path in paths):
        raise ValueError(
            f"pretrained tables must be a folder with <table>.safetensors or <table>.parquet: got {folder!r} without "
            f"any of {', '.join(tables)}; export them with recipes/export_tables.py"
        )


def _has_weight(path: str) -> bool:
    with safe_open(path, framework="np") as file:
        return "weight" in file.keys()  # noqa: SIM118  # no dictionary


def _write_parquet(path: str, weights: torch.Tensor) -> None:
    rows, dim = weights.shape
    kind = pa.float16() if weights.dtype == torch.float16 else pa.float32()
    schema = pa.schema([("id", pa.int64()), ("vector", pa.list_(kind, dim))])
    with pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=False) as writer:
        for first in range(0, rows, _ROW_GROUP_ROWS):
            values = weights[first : first + _ROW_GROUP_ROWS].numpy()
            vectors = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), dim)
            ids = pa.array(np.arange(first, first + len(values)))
            writer.write_table(pa.Table.from_arrays([ids, vectors], schema=schema))


def _open_safetensors(path: str) -> tuple[ReadRows, tuple[int, ...]]:
    with safe_open(path, framework="pt") as file:
        shape = tuple(file.get_slice("weight").get_shape())

    def read(first: int, last: int) -> torch.Tensor:
        with safe_open(path, framework="pt") as file:
            rows: torch.Tensor = file.get_slice("weight")[first:last]
            return rows

    return read, shape


def _open_parquet(path: str) -> tuple[ReadRows, tuple[int, ...]]:
    file = pq.ParquetFile(path)
    groups = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
    starts = np.concatenate([[0], np.cumsum(groups)])

    def read(first: int, last: int) -> torch.Tensor:
        begin, end = np.searchsorted(starts, first, side="right") - 1, np.searchsorted(starts, last)
        table = file.read_row_groups(range(begin, end), columns=["id", "vector"])
        ids = table["id"].to_numpy()
        if not np.array_equal(ids, np.arange(starts[begin], starts[end])):
            raise ValueError(
                f"{path} must hold the ids 0, 1, 2, ... in order: got others; add missing ids and sort by id"
            )
        values = table["vector"].combine_chunks().flatten().to_numpy().reshape(len(ids), -1)
        return torch.from_numpy(values[first - starts[begin] : last - starts[begin]].copy())

    first_vector = next(iter(file.iter_batches(1, columns=["vector"])), None)
    dim = 0 if first_vector is None else len(first_vector["vector"][0])
    return read, (int(starts[-1]), dim)
