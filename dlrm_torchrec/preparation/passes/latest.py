"""Finds the times at which the latest splits begin: times are counted unit by unit, then merged.

The memory is 16 bytes for each distinct time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import pyarrow as pa

from dlrm_torchrec.datasets.prepared.files import NewFile, Stored, join
from dlrm_torchrec.preparation.splits import ByTime
from dlrm_torchrec.preparation.vocabularies.counting import IntCounter
from dlrm_torchrec.preparation.vocabularies.runs import merge, open_run, write_run
from dlrm_torchrec.preparation.work.recorded_work import FOLDER, Record, RecordedWork
from dlrm_torchrec.preparation.work.units import Unit
from dlrm_torchrec.preparation.work.workers import Report, Task


def with_starts(
    units: Sequence[Unit], work: RecordedWork, run: Callable[[str, dict[str, Task]], None], output: str
) -> list[Unit]:
    """The units, those that are split by time with the times at which their splits begin."""
    places = {unit.number: unit.assignment for unit in units if isinstance(unit.assignment, ByTime)}
    if not places:
        return list(units)
    counting = {
        name: work.task(name, unit.what, unit.span.bytes, partial(_count, unit, places[unit.number], output))
        for unit in units
        if unit.number in places
        for name in [f"times-{unit.number:05d}"]
    }
    run("counting times", counting)
    find = partial(_find, next(iter(places.values())), work.records(counting), output)
    finding = {"times": work.task("times", "the latest rows", 1, find)}
    run("finding the latest rows", finding)
    (found,) = work.records(finding)
    starts = tuple(found.result)
    return [
        replace(unit, assignment=replace(places[unit.number], starts=starts)) if unit.number in places else unit
        for unit in units
    ]


def _count(unit: Unit, place: ByTime, output: str, report: Report) -> tuple[list[Stored], None]:
    counter = IntCounter()
    for rows in unit.reader(unit.path, unit.span):
        times, known = place.times(rows)
        counter.add(pa.array(times[known]))
        report(len(times), rows.raw_bytes)
    with NewFile(output, f"{FOLDER}/times-{unit.number:05d}.arrow") as file:
        write_run(file, [counter.table()])
    return [file.stored], None


def _find(
    place: ByTime, counted: Iterable[Record], output: str, report: Report
) -> tuple[list[Stored], tuple[int, ...]]:
    runs = [partial(open_run, join(output, file.path), 0) for record in counted for file in record.files]
    tables = list(merge(runs))
    report(0, 1)
    times, counts = (
        np.concatenate([table[name].to_numpy() for table in tables] or [np.empty(0, np.int64)])
        for name in ("value", "count")
    )
    return [], place.starting(times, counts).starts
