"""Prepared files that break their spec: one sentence that names column, file, row group and value."""

import re
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dlrm_torchrec.datasets.prepared.parquet import ParquetStream
from tests.datasets.batches import rows_of
from tests.datasets.prepared_files import make_table, reference_rows, write_folder, write_manifest

ROWS = 20  # in two row groups of 10


def replace(table: pa.Table, name: str, values: pa.Array) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), name, values)


def spoil(table: pa.Table, name: str, row: int, value: object) -> pa.Table:
    """The table with one value changed."""
    values = table.column(name).to_pylist()
    values[row] = value
    kind = pa.int64() if name in ("user", "shop") else table.schema.field(name).type
    return replace(table, name, pa.array(values, kind))


def stream_of(folder: Path, table: pa.Table) -> ParquetStream:
    pq.write_table(table, folder / "part.parquet", row_group_size=10)
    write_manifest(folder, {"part.parquet": table.num_rows})
    return ParquetStream(str(folder), "train", global_batch_size=4, shuffle=False)


@pytest.mark.parametrize(
    ("name", "value", "rule", "got"),
    [
        ("user", -1, "must hold ids in [0, 1000000), those of its table", "-1"),
        ("user", 1_000_000, "must hold ids in [0, 1000000), those of its table", "1000000"),
        ("shop", 30, "must hold ids in [0, 30), those of its table", "30"),
        ("shop", 2**40, "must hold ids in [0, 30), those of its table", str(2**40)),
        ("history", [3, 50, 2], "must hold ids in [0, 50), those of its table", "50"),
        ("user", None, "must have no nulls", "1"),
        ("age", None, "must have no nulls", "1"),
        ("click", None, "must have no nulls", "1"),
        ("history", None, "must have no nulls", "1"),
        ("history", [3, None], "must have no nulls", "1"),
        ("price", float("nan"), "must hold finite float32s", "nan"),
        ("price", float("-inf"), "must hold finite float32s", "-inf"),
        ("age", 1e300, "must hold finite float32s", "1e+300"),
    ],
)
def test_a_bad_value_is_named_when_its_row_group_is_reached(
    tmp_path: Path, name: str, value: object, rule: str, got: str
) -> None:
    batches = stream_of(tmp_path, spoil(make_table(ROWS), name, 13, value)).batches()
    assert [next(batches).num_rows for _ in range(2)] == [4, 4]  # the row group before it is good
    expected = f"column {name!r} of {tmp_path}/part.parquet, row group 1 {rule}: got {got}; "
    with pytest.raises(ValueError, match=re.escape(expected)):
        list(batches)


@pytest.mark.parametrize("value", [2, -1])
def test_a_label_must_be_zero_or_one(tmp_path: Path, value: int) -> None:
    batches = stream_of(tmp_path, spoil(make_table(ROWS), "click", 3, value)).batches()
    expected = f"label 'click' of {tmp_path}/part.parquet, row group 0 must be 0 or 1: got {float(value)}; prepare"
    with pytest.raises(ValueError, match=re.escape(expected)):
        next(batches)


@pytest.mark.parametrize("name", ["click", "age", "user", "history"])
def test_a_missing_column_is_named_at_once(tmp_path: Path, name: str) -> None:
    expected = f"file {tmp_path}/part.parquet must have the column {name!r} of its spec: got ["
    with pytest.raises(ValueError, match=re.escape(expected)):
        stream_of(tmp_path, make_table(ROWS).drop_columns([name]))


@pytest.mark.parametrize(
    ("name", "values", "wanted"),
    [
        ("click", pa.array(["0"] * ROWS), "a number or a boolean per row: got string"),
        ("age", pa.array(["0"] * ROWS), "a number per row: got string"),
        ("age", pa.array([True] * ROWS), "a number per row: got bool"),
        ("user", pa.array([1.0] * ROWS), "an integer per row: got double"),
        ("user", pa.array([[1]] * ROWS), "an integer per row: got list"),
        ("history", pa.array([1] * ROWS), "a list of integers per row: got int64"),
        ("history", pa.array([["a"]] * ROWS), "a list of integers per row: got list"),
    ],
)
def test_a_wrong_type_is_named_at_once(tmp_path: Path, name: str, values: pa.Array, wanted: str) -> None:
    expected = f"column {name!r} of {tmp_path}/part.parquet must be {wanted}"
    with pytest.raises(ValueError, match=re.escape(expected)):
        stream_of(tmp_path, replace(make_table(ROWS), name, values))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("click", pa.bool_()),
        ("click", pa.int64()),
        ("click", pa.float64()),
        ("age", pa.float16()),
        ("price", pa.int32()),
        ("user", pa.uint64()),
        ("shop", pa.uint8()),
        ("history", pa.large_list(pa.uint16())),
    ],
)
def test_any_type_that_fits_is_read(tmp_path: Path, name: str, kind: pa.DataType) -> None:
    table = make_table(ROWS)
    column = table.column(name)
    if kind == pa.bool_():
        column = pa.array([bool(value) for value in column.to_pylist()])
    elif name == "age":
        column = pa.array(column.to_numpy().astype(np.float16))
    elif name == "price":
        column = pa.array(range(ROWS), kind)
    else:
        column = column.cast(kind)
    table = replace(table, name, column)
    rows = [row for batch in stream_of(tmp_path, table).batches() for row in rows_of([batch])]
    assert rows == reference_rows(table)


def test_a_file_that_lost_rows_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path, [[10]])
    write_manifest(tmp_path, {"part-0.parquet": 11})
    expected = f"file {tmp_path}/part-0.parquet must have the 11 rows of its manifest: got 10; prepare it again"
    with pytest.raises(ValueError, match=re.escape(expected)):
        ParquetStream(str(tmp_path), "train", global_batch_size=4, shuffle=False)


def test_an_error_of_the_reader_thread_reaches_the_consumer(tmp_path: Path) -> None:
    write_folder(tmp_path, [[8], [8]])
    stream = ParquetStream(str(tmp_path), "train", global_batch_size=4, shuffle=False)
    (tmp_path / "part-1.parquet").unlink()
    batches = stream.batches()
    assert [next(batches).num_rows for _ in range(2)] == [4, 4]
    with pytest.raises(FileNotFoundError, match=r"part-1\.parquet"):
        next(batches)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("ahead", "decode"))]
