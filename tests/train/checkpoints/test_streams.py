"""Tensors of every kind in slices, and the checksums made beside them."""

from __future__ import annotations

import io
import random
import time
import zlib
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp

from dlrm_torchrec.train.checkpoints import checksums, storage
from dlrm_torchrec.train.checkpoints.checksums import FileSum, SummedStream, content_fault
from dlrm_torchrec.train.checkpoints.reports import Report
from dlrm_torchrec.train.checkpoints.storage import IoPathReader, IoPathWriter


def tensors() -> dict[str, torch.Tensor]:
    table = torch.randn(50, 24)
    return {
        "view": table[10:40],
        "columns": table[:, 3:17],
        "transposed": torch.randn(7, 9).t(),
        "deep": torch.randn(5, 3, 4),
        "scalar": torch.tensor(1.5),
        "none": torch.empty(0, 8),
        "bits": torch.randn(33).to(torch.bfloat16),
        "halves": torch.randn(3, 5).half(),
        "counts": torch.randint(-(2**62), 2**62, (17,)),
        "flags": torch.rand(19) < 0.5,
        "one row": torch.randn(1, 300),
    }


@pytest.mark.parametrize("slice_bytes", [1, 64, storage.SLICE_BYTES])
def test_tensors_of_every_kind_come_back(tmp_path: Path, slice_bytes: int) -> None:
    saved = tensors()
    with mock.patch.object(storage, "SLICE_BYTES", slice_bytes):
        dcp.save(saved, storage_writer=IoPathWriter(str(tmp_path)), no_dist=True)
        loaded = {name: torch.zeros_like(value) for name, value in saved.items()}
        loaded["columns"] = torch.zeros(50, 40)[:, 5:19]
        dcp.load(loaded, storage_reader=IoPathReader(str(tmp_path)), no_dist=True)
    for name, value in saved.items():
        assert torch.equal(loaded[name], value), name


def test_a_part_of_a_table_is_written_from_its_own_memory() -> None:
    table = torch.randn(60_000, 100)
    part = table[100:50_100]
    pieces = [np.frombuffer(piece, np.uint8) for piece in storage._slices(part)]
    addresses = [piece.ctypes.data for piece in pieces]
    lengths = [len(piece) for piece in pieces]
    assert addresses == [part.data_ptr() + sum(lengths[:number]) for number in range(len(lengths))]
    assert max(lengths) <= storage.SLICE_BYTES
    assert sum(lengths) == part.nbytes


def test_every_block_has_its_checksum() -> None:
    generator = random.Random()
    content = generator.randbytes(10_000)
    with mock.patch.object(checksums, "BLOCK_BYTES", 997):
        found, position = io.BytesIO(), 0
        stream = SummedStream(found)
        while position < len(content):
            end = position + generator.randrange(1, 3000)
            stream.write(content[position:end])
            position = end
        stream.sync()
    assert found.getvalue() == content
    blocks = [content[start : start + 997] for start in range(0, len(content), 997)]
    assert stream.sum == FileSum(10_000, [zlib.crc32(block) for block in blocks])


def test_ranks_verify_every_block_between_them(tmp_path: Path) -> None:
    sums = {}
    with mock.patch.object(checksums, "BLOCK_BYTES", 100):
        for name, length in (("a", 1001), ("b", 0), ("c", 99)):
            content = random.randbytes(length)
            (tmp_path / name).write_bytes(content)
            sums[name] = FileSum()
            sums[name].add(memoryview(content))

        def faults() -> list[str]:
            shares = [checksums.Share(rank, 4, threads=2) for rank in range(4)]
            return [content_fault(str(tmp_path), sums, share, print) for share in shares]

        assert faults() == [""] * 4
        for name, place in [("c", 0), *(("a", place) for place in range(0, 1001, 100))]:
            content = (tmp_path / name).read_bytes()
            (tmp_path / name).write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
            found = [fault for fault in faults() if fault]
            assert len(found) == 1
            assert found[0].startswith(f"{name} differs from its checksum between bytes {place:,} and ")
            (tmp_path / name).write_bytes(content)


def test_long_work_is_told_every_ten_seconds() -> None:
    said: list[str] = []
    with mock.patch.object(time, "monotonic", side_effect=[0, 4, 11, 11, 12, 21, 21]):
        report = Report(said.append, "saving here", 8_000_000_000)
        for _ in range(4):
            report.add(1_500_000_000)
    assert said == ["saving here: 3.0 of 8.0 GB", "saving here: 6.0 of 8.0 GB"]
