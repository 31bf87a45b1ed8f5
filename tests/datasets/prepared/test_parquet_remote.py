"""Prepared folders behind a handler of iopath, with files as object stores give them."""

import io
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from iopath.common.file_io import PathHandler, g_pathmgr

from dlrm_torchrec.datasets.prepared import parquet
from dlrm_torchrec.datasets.prepared.parquet import ParquetStream
from tests.datasets.batches import Row, rows_of
from tests.datasets.prepared_files import reference_rows, write_folder

Wrap = Callable[[io.BufferedReader], Any]


class Handler(PathHandler):
    """Serves ``test://bucket/`` from a local folder, and counts what is opened and copied."""

    def __init__(self, folder: Path, wrap: Wrap = lambda file: file) -> None:
        super().__init__()
        self.folder, self.wrap = folder, wrap
        self.opened: Counter[str] = Counter()
        self.copied: Counter[str] = Counter()

    def _get_supported_prefixes(self) -> list[str]:
        return ["test://"]

    def _path(self, path: str) -> Path:
        return self.folder / path.removeprefix("test://bucket/")

    def _open(self, path: str, mode: str = "r", **_: object) -> Any:
        self.opened[self._path(path).name] += 1
        file: Any = self._path(path).open(mode)
        return self.wrap(file) if "b" in mode else file

    def _exists(self, path: str, **_: object) -> bool:
        return self._path(path).exists()

    def _get_local_path(self, path: str, force: bool = False, **_: object) -> str:  # noqa: ARG002  # the signature of iopath
        self.copied[self._path(path).name] += 1
        return str(self._path(path))


class Pipe(io.RawIOBase):
    """A file that can only be read from its beginning to its end."""

    def __init__(self, file: io.BufferedReader) -> None:
        self.file = file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self.file.readinto(buffer)


def read(folder: Path, wrap: Wrap = lambda file: file) -> tuple[Counter[Row], Handler]:
    """All rows of two shuffled epochs, and the handler that they came through."""
    handler = Handler(folder, wrap)
    g_pathmgr.register_handler(handler, allow_override=True)
    stream = ParquetStream("test://bucket", "train", global_batch_size=12, shuffle=True, epochs=2)
    return Counter(row for batch in stream.batches() for row in rows_of([batch])), handler


def test_row_groups_are_read_one_by_one_where_files_can_seek(tmp_path: Path) -> None:
    expected = Counter(reference_rows(write_folder(tmp_path, [[30, 30], [30, 30, 5]])) * 2)
    rows, handler = read(tmp_path)
    assert rows == expected
    assert not handler.copied
    assert handler.opened["part-1.parquet"] >= 2 + 3 * 2  # to look at it, and each row group in each epoch


@pytest.mark.parametrize("wrap", [Pipe, lambda file: io.BytesIO(file.read())], ids=["cannot seek", "held in memory"])
def test_other_files_are_copied_once(tmp_path: Path, wrap: Wrap) -> None:
    expected = Counter(reference_rows(write_folder(tmp_path, [[30, 30], [30, 30, 5]])) * 2)
    rows, handler = read(tmp_path, wrap)
    assert rows == expected
    assert handler.opened == {"dataset.json": 1, "part-0.parquet": 1, "part-1.parquet": 1}
    assert handler.copied == {"part-0.parquet": 1, "part-1.parquet": 1}


def test_several_row_groups_are_read_at_the_same_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "_cores", lambda: 2)
    expected = Counter(reference_rows(write_folder(tmp_path, [[30, 30, 30]])) * 2)
    reading: set[threading.Thread] = set()
    both = threading.Event()

    def wait_for_another(file: io.BufferedReader) -> io.BufferedReader:
        if threading.current_thread().name.startswith("decode"):
            reading.add(threading.current_thread())
            if len(reading) == 2:
                both.set()
            assert both.wait(60)  # so far away that one alone gets nowhere
        return file

    assert read(tmp_path, wait_for_another)[0] == expected
