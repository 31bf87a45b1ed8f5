"""Records of finished tasks in the folder ``work``, by which an interrupted preparation resumes.

A record is written when all files of a task are complete. It names them with size and checksum. The folder is removed
when the preparation is done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from iopath.common.file_io import g_pathmgr

from dlrm_torchrec.datasets.prepared.files import Stored, digest, is_local, join, read_json, remove, write_json
from dlrm_torchrec.preparation.work.workers import Report, Task

FOLDER = "work"


@dataclass(frozen=True)
class Record:
    """A finished task: the files that it wrote, and its other results in types of JSON."""

    files: tuple[Stored, ...]
    result: Any


class RecordedWork:
    """The records of the preparation of the folder ``output``."""

    def __init__(self, output: str) -> None:
        self._output = output

    @property
    def scratch(self) -> str | None:
        """A local folder for unnamed files; None means the system's folder."""
        return join(self._output, FOLDER) if is_local(self._output) else None

    def task(self, name: str, what: str, raw_bytes: int, do: Callable[[Report], tuple[Sequence[Stored], Any]]) -> Task:
        """A task that does ``do`` and records its files and results, unless an intact record exists."""
        return Task(what, raw_bytes, partial(self._do, name, raw_bytes, do))

    def _do(
        self, name: str, raw_bytes: int, do: Callable[[Report], tuple[Sequence[Stored], Any]], report: Report
    ) -> None:
        if self._is_intact(name, report):
            report(0, raw_bytes)
            return
        files, result = do(report)
        data = {"files": [asdict(file) for file in files], "result": result}
        write_json(self._output, f"{FOLDER}/{name}.json", data)

    def record(self, name: str) -> Record | None:
        """The record of a task; None if the task is not finished."""
        data = read_json(join(self._output, FOLDER, f"{name}.json"))
        return Record(tuple(Stored(**file) for file in data["files"]), data["result"]) if data else None

    def records(self, names: Iterable[str]) -> list[Record]:
        """The records of finished tasks."""
        records = [self.record(name) for name in names]
        assert None not in records
        return [record for record in records if record is not None]

    def _is_intact(self, name: str, report: Report) -> bool:
        """Whether a task is finished and its files have not changed."""
        record = self.record(name)
        return record is not None and all(self._is_unchanged(file, report) for file in record.files)

    def _is_unchanged(self, file: Stored, report: Report) -> bool:
        path = join(self._output, file.path)
        if not g_pathmgr.isfile(path):
            return False
        return digest(path, lambda _: report(0, 0)) == (file.bytes, file.sha256)

    def remove(self) -> None:
        """Remove all records, because the preparation is done."""
        remove(join(self._output, FOLDER))
