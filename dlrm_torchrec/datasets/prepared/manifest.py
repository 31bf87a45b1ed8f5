"""The prepared folder: Parquet files per split, described by ``dataset.json``.

``dataset.json`` is written last, so a folder that has one is complete. You can also write it by hand for your own
Parquet files: it needs ``format``, ``spec``, and ``splits`` with a ``path`` and ``rows`` per file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from iopath.common.file_io import g_pathmgr

from dlrm_torchrec.checked_json import record
from dlrm_torchrec.datasets.prepared.files import is_local, write_json
from dlrm_torchrec.datasets.prepared.files import join as join  # readers of manifests need this name, too
from dlrm_torchrec.datasets.prepared.lineage import Lineage
from dlrm_torchrec.datasets.prepared.synthesis import MultiHot
from dlrm_torchrec.schema import AccessStatistics, DatasetSpec

FORMAT = 2  # since 2, hashed texts that are whole numbers have the ids of these numbers
NAME = "dataset.json"


@dataclass(frozen=True, kw_only=True)
class DataFile:
    """One Parquet file of a split; ``path`` is relative to the prepared folder, absolute, or a URI."""

    path: str
    rows: int
    sha256: str | None = None  # absent when the manifest was written by hand

    def __post_init__(self) -> None:
        if self.rows < 0:
            raise ValueError(f"rows of file {self.path!r} must be at least 0: got {self.rows}; count them")

    def location(self, folder: str) -> str:
        """The path or URI of the file in the prepared folder ``folder``."""
        return join(folder, self.path) if is_local(self.path) and self.path[:1] != "/" else self.path


@dataclass(frozen=True, kw_only=True)
class Split:
    """The files of one split, in reading order."""

    files: tuple[DataFile, ...]

    @property
    def rows(self) -> int:
        return sum(file.rows for file in self.files)


@dataclass(frozen=True, kw_only=True)
class SourceFile:
    """One raw file that the folder was prepared from."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a prepared folder holds: spec, files of the splits, their raw sources, and how often ids are looked up."""

    spec: DatasetSpec
    splits: Mapping[str, Split]
    sources: tuple[SourceFile, ...] = ()
    report: Mapping[str, Any] = field(default_factory=dict)  # counts of rows read, written and quarantined
    statistics: Mapping[str, AccessStatistics] = field(default_factory=dict)  # by sparse feature; empty if not profiled
    multi_hot: MultiHot | None = None  # how features that the files hold one-hot become bags while they are read
    lineage: Lineage | None = None  # the place in a chain of folders that continue each other's vocabularies
    # Of histories: from which second on, and before which, the candidates of each split lie; empty for other data.
    windows: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def stored_spec(self) -> DatasetSpec:
        """The spec of the columns in the files."""
        return self.spec if self.multi_hot is None else self.multi_hot.stored(self.spec)

    def save(self, folder: str) -> None:
        """Write ``dataset.json`` into ``folder``; an old one stays in place until the new one is complete."""
        data: dict[str, Any] = {
            "format": FORMAT,
            "spec": self.spec.to_json(),
            "splits": {
                name: {"rows": split.rows, "files": [asdict(file) for file in split.files]}
                for name, split in self.splits.items()
            },
            "sources": [asdict(source) for source in self.sources],
            "report": dict(self.report),
        }
        if self.statistics:
            data["statistics"] = {name: statistics.to_json() for name, statistics in self.statistics.items()}
        if self.multi_hot is not None:
            data["multi_hot"] = self.multi_hot.to_json()
        if self.lineage is not None:
            data["lineage"] = self.lineage.to_json()
        if self.windows:
            data["windows"] = {name: list(times) for name, times in self.windows.items()}
        write_json(folder, NAME, data, indent=1)

    @classmethod
    def load(cls, folder: str) -> Manifest:
        """The manifest of a prepared folder. Raises ValueError if it is missing or invalid."""
        path = join(folder, NAME)
        if not g_pathmgr.exists(path):
            raise ValueError(
                f"folder {folder!r} must hold a {NAME}: got none; prepare it first with a data/*/prepare.py, "
                "or write one for your Parquet files"
            )
        try:
            with g_pathmgr.open(path, "r") as file:
                data = json.load(file)
            if not isinstance(data, dict):
                raise ValueError(f"a manifest must be an object: got {str(data)[:40]}")
            if data["format"] != FORMAT:
                raise ValueError(f"format must be {FORMAT}: got {data['format']!r}")
            if not isinstance(data.get("report", {}), dict):
                raise ValueError(f"report must be an object: got {data['report']}")
            splits = {name: _split(name, value) for name, value in data["splits"].items()}
            return cls(
                spec=DatasetSpec.from_json(data["spec"]),
                splits=splits,
                sources=tuple(record(SourceFile, source, "a source") for source in data.get("sources", [])),
                report=data.get("report", {}),
                statistics={
                    name: AccessStatistics.from_json(value) for name, value in data.get("statistics", {}).items()
                },
                multi_hot=MultiHot(**data["multi_hot"]) if "multi_hot" in data else None,
                lineage=Lineage.from_json(data["lineage"]) if "lineage" in data else None,
                windows={name: _window(name, times) for name, times in data.get("windows", {}).items()},
            )
        except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
            detail = f"no field {error}" if isinstance(error, KeyError) else error
            if isinstance(error, RecursionError):
                detail = "brackets within brackets without end"
            raise ValueError(
                f"{path} must be a manifest that this version reads: got {detail}; prepare the folder again"
            ) from error


def _window(name: str, times: Any) -> tuple[int, int]:
    if not isinstance(times, list) or [type(each) for each in times] != [int, int] or times[0] >= times[1]:
        raise ValueError(f"window {name!r} must be a first second and a later one that is the end: got {times}")
    return times[0], times[1]


def _split(name: str, data: dict[str, Any]) -> Split:
    split = Split(files=tuple(record(DataFile, file, f"a file of split {name!r}") for file in data["files"]))
    if data.get("rows", split.rows) != split.rows:
        raise ValueError(f"{data['rows']} rows in split {name!r}, but {split.rows} in its files")
    return split
