"""Cuts the sources into units of work, the same units for any number of workers and machines."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from iopath.common.file_io import g_pathmgr

from dlrm_torchrec.datasets.prepared.files import Stored, digest
from dlrm_torchrec.datasets.prepared.lineage import TrainedFile
from dlrm_torchrec.preparation.readers.lines import count_lines
from dlrm_torchrec.preparation.readers.rows import Reader, Rows
from dlrm_torchrec.preparation.readers.spans import Span, cut, file_bytes, number
from dlrm_torchrec.preparation.readers.streams import first_bytes
from dlrm_torchrec.preparation.readers.text.reader import TextReader
from dlrm_torchrec.preparation.splits import Assignment, ByPosition, LastPart
from dlrm_torchrec.preparation.work.recorded_work import RecordedWork
from dlrm_torchrec.preparation.work.workers import Report, Task

_PROBE_BYTES = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Source:
    """A raw file, how to read it, and which split each of its rows goes to."""

    path: str
    reader: Reader
    assignment: Assignment | LastPart

    def identity(self) -> dict[str, Any]:
        """Facts that tell whether a file, and the way to read it, are the same as before, without reading all of it."""
        size, sha256 = file_bytes(self.path), hashlib.sha256()
        with g_pathmgr.open(self.path, "rb") as file:
            for position in (0, size // 2, max(0, size - _PROBE_BYTES)):
                file.seek(position)
                sha256.update(file.read(_PROBE_BYTES))
        read = {"reader": repr(self.reader), "assignment": repr(self.assignment)}
        return {"path": self.path, "bytes": size, "probe": sha256.hexdigest(), **read}


def check_distinct(identities: Sequence[dict[str, Any]]) -> None:
    """Raises ValueError if a file is there twice, or if equal copies of it are split in other ways.

    Equal rows of copies that are split alike are in the same split.
    """
    by_probe: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for each in identities:
        by_probe.setdefault((each["bytes"], each["probe"]), []).append(each)
    for group in by_probe.values():
        alike = [each for each in group if _has_rows(each["path"])] if len(group) > 1 else []
        twice = [path for path, count in Counter(each["path"] for each in alike).items() if count > 1]
        if twice:
            raise ValueError(f"sources must be different files: got {twice[0]} twice; name it once")
        first: dict[str, dict[str, Any]] = {}
        for each in alike:
            other = first.setdefault(digest(each["path"], lambda _: None)[1], each)
            if other["assignment"] != each["assignment"]:
                raise ValueError(
                    f"sources of different splits must be different files: got {each['path']}, a copy of "
                    f"{other['path']}; leave one of them out"
                )


def check_new(paths: Sequence[str], known: Sequence[TrainedFile]) -> None:
    """Raises ValueError if a file with training rows is one of an earlier window, whatever its name is now."""
    sizes = {file.bytes for file in known}
    before = {file.sha256 for file in known}
    for path in paths:
        if file_bytes(path) in sizes and _has_rows(path) and digest(path, lambda _: None)[1] in before:
            raise ValueError(
                f"sources with training rows must be new in each window: got {path}, whose rows an earlier window of "
                "the chain has; name the files of this window only"
            )


def _has_rows(path: str) -> bool:
    """Whether a file holds more than a header, as far as that is quickly told."""
    (first, *others) = cut(path, 1 << 62)
    return bool(
        others or (first.count if first.count is not None else first_bytes(path, _PROBE_BYTES).count(b"\n") > 1)
    )


@dataclass(frozen=True, kw_only=True)
class Unit:
    """A span of a source, which one worker prepares at a time."""

    number: int  # in the order of the output
    source: int
    path: str
    reader: Reader
    assignment: Assignment
    span: Span

    @property
    def what(self) -> str:
        if self.span.count is None:
            return self.path
        return f"rows {self.span.first:,} to {self.span.first + self.span.count - 1:,} of {self.path}"

    def feeds(self, split: str) -> bool:
        """Whether any of the rows may go to a split."""
        if not isinstance(self.assignment, ByPosition) or self.span.count is None:
            return split in self.assignment.splits
        place = self.assignment.of_numbers(np.arange(self.span.first, self.span.first + self.span.count))
        return split in {self.assignment.splits[i] for i in np.unique(place)}

    def pieces(self, report: Report) -> Iterator[tuple[Rows, dict[str, Rows]]]:
        """Each piece of the unit, and its rows by split; a piece is reported after the caller has used it."""
        for piece in self.reader(self.path, self.span):
            place = self.assignment(piece)
            yield piece, {self.assignment.splits[i]: piece.select(place == i) for i in np.unique(place)}
            report(len(piece.numbers), piece.raw_bytes)


def line_tasks(sources: Sequence[Source], spans: Sequence[Sequence[Span]], work: RecordedWork) -> dict[str, Task]:
    """Tasks, by name, that count the lines of each span of the sources that need these counts."""
    return {
        _name(i, j): work.task(_name(i, j), f"the lines of {source.path}", span.bytes, partial(_count, source, span))
        for i, (source, parts) in enumerate(zip(sources, spans, strict=True))
        for j, span in enumerate(parts)
        if _needs_lines(source, parts)
    }


def make_units(sources: Sequence[Source], spans: Sequence[Sequence[Span]], work: RecordedWork) -> list[Unit]:
    """The units of all sources, in order, once the tasks of ``line_tasks`` are done."""
    units: list[Unit] = []
    for i, (source, parts) in enumerate(zip(sources, spans, strict=True)):
        if _needs_lines(source, parts):
            parts = number(
                parts,
                [record.result for record in work.records(_name(i, j) for j in range(len(parts)))],
                quoted=_is_quoted(source),
            )
        place = source.assignment
        if isinstance(place, LastPart):
            place = place.of(sum(span.count or 0 for span in parts))
        for span in parts:
            units.append(
                Unit(number=len(units), source=i, path=source.path, reader=source.reader, assignment=place, span=span)
            )
    return units


def _needs_lines(source: Source, parts: Sequence[Span]) -> bool:
    return parts[0].count is None and (len(parts) > 1 or isinstance(source.assignment, LastPart))


def _is_quoted(source: Source) -> bool:
    """Whether line ends may lie within fields."""
    return isinstance(source.reader, TextReader) and not source.reader.layout.libsvm


def _name(source: int, span: int) -> str:
    return f"lines-{source:05d}-{span:05d}"


def _count(source: Source, span: Span, report: Report) -> tuple[list[Stored], tuple[int, int]]:
    lines, quotes = 0, 0
    for more_lines, more_quotes, raw_bytes in count_lines(source.path, span, quoted=_is_quoted(source)):
        lines, quotes = lines + more_lines, quotes + more_quotes
        report(0, raw_bytes)
    return [], (lines, quotes)
