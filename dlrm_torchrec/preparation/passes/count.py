"""The first pass counts the values of vocabulary features, unit by unit, and makes vocabularies of the counts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from functools import partial
from typing import Any

from dlrm_torchrec.datasets.prepared.files import NewFile, Stored, join
from dlrm_torchrec.preparation.vocabularies.build import build_vocabulary
from dlrm_torchrec.preparation.vocabularies.counting import ValueCounter
from dlrm_torchrec.preparation.vocabularies.runs import open_run, write_run
from dlrm_torchrec.preparation.vocabularies.vocabulary import Vocabulary
from dlrm_torchrec.preparation.work.recorded_work import FOLDER, Record, RecordedWork
from dlrm_torchrec.preparation.work.units import Unit
from dlrm_torchrec.preparation.work.workers import Report
from dlrm_torchrec.schema import DatasetSpec, SparseFeature

Runs = dict[str, list[tuple[str, int]]]  # by feature: the files, and the byte at which the run begins in each


def count_unit(
    unit: Unit, report: Report, *, split: str, spec: DatasetSpec, output: str, limit_bytes: int
) -> tuple[list[Stored], Runs]:
    """Files with the runs of counted values of a unit's rows of one split, and where each run begins.

    When counts outgrow ``limit_bytes``, they are written to a file, and counting begins again.
    """
    counters = {i: ValueCounter() for i, feature in enumerate(spec.sparse) if feature.encoding == "vocab"}
    files: list[Stored] = []
    runs: Runs = defaultdict(list)

    def write() -> None:
        with NewFile(output, f"{FOLDER}/counts-{unit.number:05d}-{len(files):03d}.arrow") as file:
            for i, counter in counters.items():
                table = counter.take()
                if len(table):
                    runs[spec.sparse[i].name].append((file.path, file.tell()))
                    write_run(file, [table])
                report(0, 0)
        files.append(file.stored)

    for _, by_split in unit.pieces(report):
        if split in by_split:
            for i, counter in counters.items():
                values = by_split[split].sparse[i]
                counter.add(values.flatten() if spec.sparse[i].multi_hot else values)
            if sum(counter.nbytes for counter in counters.values()) > limit_bytes:
                write()
    write()
    return files, dict(runs)


def make_vocabulary(
    feature: SparseFeature, report: Report, *, number: int, counted: Iterable[Record], output: str, work: RecordedWork
) -> tuple[list[Stored], dict[str, Any]]:
    """Files of the vocabulary of one feature, with its rows and kind of values, from the counts of the units."""
    runs = [
        partial(open_run, join(output, path), start)
        for record in counted
        for path, start in record.result.get(feature.name, [])
    ]
    rows, kind, files = build_vocabulary(
        runs,
        report,
        min_count=feature.min_count,
        folder=output,
        list_path=f"vocab/{feature.name}.parquet",
        table_path=f"{FOLDER}/table-{number:03d}",
        scratch_folder=work.scratch,
    )
    report(0, 1)
    return files, {"rows": rows, "kind": kind}


def load_vocabulary(record: Record, output: str) -> Vocabulary:
    """The vocabulary that ``make_vocabulary`` recorded."""
    _, *table = record.files
    return Vocabulary.load(**record.result, paths=[join(output, file.path) for file in table])
