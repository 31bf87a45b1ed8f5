"""Tables as files: what is read is what was written, and what cannot be used is refused."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from dlrm_torchrec.embeddings import table_files
from dlrm_torchrec.embeddings.config import TableFormat
from dlrm_torchrec.embeddings.table_files import check_folder, open_table, write_table


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("format", ["safetensors", "parquet"])
def test_any_rows_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: TableFormat, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(table_files, "_ROW_GROUP_ROWS", 4)
    weights = torch.randn(11, 3).to(dtype)
    write_table(str(tmp_path), "t", weights, format)
    assert [path.name for path in tmp_path.iterdir()] == [f"t.{format}"]
    read = open_table(str(tmp_path), "t", (11, 3))
    assert read is not None
    for first in range(11):
        for last in range(first + 1, 12):
            assert torch.equal(read(first, last), weights[first:last])


def test_other_programs_read_them(tmp_path: Path) -> None:
    weights = torch.randn(5, 2)
    for format in ("safetensors", "parquet"):
        write_table(str(tmp_path), "t", weights, format)
    assert torch.equal(load_file(tmp_path / "t.safetensors")["weight"], weights)
    rows = pq.read_table(tmp_path / "t.parquet").to_pydict()
    assert rows["id"] == [0, 1, 2, 3, 4]
    assert torch.equal(torch.tensor(rows["vector"]), weights)


def test_a_table_without_a_file_is_none(tmp_path: Path) -> None:
    assert open_table(str(tmp_path), "t", (5, 2)) is None


def test_what_cannot_be_used_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"pretrained tables must be a folder with .*: got '.*' without any of t, u;"):
        check_folder(str(tmp_path), ["t", "u"])
    with pytest.raises(ValueError, match="pretrained tables must be a folder"):
        check_folder(str(tmp_path / "none"), ["t"])
    save_file({"weight": torch.ones(5, 2)}, tmp_path / "t.safetensors")
    check_folder(str(tmp_path), ["t", "u"])
    with pytest.raises(ValueError, match=r"t.safetensors must hold a table of shape \(5, 4\): got \(5, 2\); export"):
        open_table(str(tmp_path), "t", (5, 4))
    write_table(str(tmp_path), "t", torch.ones(5, 2), "parquet")
    with pytest.raises(ValueError, match=r"table t must have one file in .*: got .*; remove one of them"):
        open_table(str(tmp_path), "t", (5, 2))


def test_ids_out_of_order_are_refused(tmp_path: Path) -> None:
    vectors = pa.array([[1.0, 2.0], [3.0, 4.0]], pa.list_(pa.float32(), 2))
    pq.write_table(pa.table({"id": [1, 0], "vector": vectors}), tmp_path / "t.parquet")
    read = open_table(str(tmp_path), "t", (2, 2))
    assert read is not None
    with pytest.raises(ValueError, match=r"must hold the ids 0, 1, 2, ... in order: got others; add missing ids"):
        read(0, 2)
