"""Files cut into spans: nothing is lost between them, and every line keeps its number."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dlrm_torchrec.preparation.readers.lines import count_lines, read_lines
from dlrm_torchrec.preparation.readers.spans import Span, cut, number, span_bytes

TEXTS = [
    b"",
    b"\n",
    b"one line without an end",
    b"\xef\xbb\xbfa\r\n\r\nb\n\n\nc" + b"x" * 300 + b"\nlast",
    b"".join(b"%d\n" % (i * i) for i in range(200)),
    b"x" * 500,
]


def numbered(path: Path, span: Span | None) -> list[tuple[int, bytes]]:
    return [
        (int(lines.numbers[i]), lines.text(i))
        for lines in read_lines(str(path), span, block_bytes=64, max_line_bytes=1000)
        for i in range(len(lines))
    ]


def counted(path: Path, limit: int) -> list[Span]:
    spans = cut(str(path), limit)
    return number(spans, [(sum(lines for lines, _, _ in count_lines(str(path), span)), 0) for span in spans])


@pytest.mark.parametrize("data", TEXTS)
@pytest.mark.parametrize("limit", [1, 2, 7, 50, 10_000])
def test_spans_of_text_hold_every_line_with_its_number(tmp_path: Path, data: bytes, limit: int) -> None:
    path = tmp_path / "f"
    path.write_bytes(data)
    spans = counted(path, limit)
    assert [span.start for span in spans] == [0, *(span.stop for span in spans[:-1])]
    assert spans[-1].stop == len(data) == sum(span.bytes for span in spans)
    assert all(data[span.start - 1 : span.start] == b"\n" for span in spans[1:])
    whole = numbered(path, None)
    assert [line for span in spans for line in numbered(path, span)] == whole
    assert sum(span.count or 0 for span in spans) == len(whole)


def test_a_gzip_file_is_one_span(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(gzip.compress(b"1\n2\n3"))
    (span,) = counted(path, 5)
    assert (span.start, span.stop, span.count) == (0, path.stat().st_size, 3)
    assert sum(lines.raw_bytes for lines in read_lines(str(path), span, block_bytes=2)) == span.bytes


def test_spans_of_parquet_are_row_groups(tmp_path: Path) -> None:
    path = tmp_path / "f.parquet"
    pq.write_table(pa.table({"a": np.random.default_rng(0).random(1000)}), path, row_group_size=64)
    for limit in (1, 1500, 10**9):
        spans = cut(str(path), limit)
        assert [span.start for span in spans] == [0, *(span.stop for span in spans[:-1])]
        assert spans[-1].stop == 16
        assert [span.first for span in spans] == [1 + 64 * span.start for span in spans]
        assert sum(span.count or 0 for span in spans) == 1000
        assert len(spans) == {1: 16, 1500: 6, 10**9: 1}[limit]
        assert 0 <= path.stat().st_size - sum(span.bytes for span in spans) < len(spans)


def test_parquet_without_rows_has_a_span(tmp_path: Path) -> None:
    pq.ParquetWriter(tmp_path / "f.parquet", pa.schema([("a", pa.int64())])).close()
    (span,) = cut(str(tmp_path / "f.parquet"), 10)
    assert (span.start, span.stop, span.count) == (0, 0, 0)


def test_spans_neither_multiply_nor_grow_without_bound() -> None:
    assert span_bytes(0) == span_bytes(100 << 20) == 16 << 20
    assert span_bytes(1 << 30) == 32 << 20
    assert span_bytes(11 << 30) == span_bytes(1 << 40) == 256 << 20
