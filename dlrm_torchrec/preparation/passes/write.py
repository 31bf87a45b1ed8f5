"""The last pass writes the rows of a unit to Parquet files of their splits, and malformed rows to quarantine."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from dlrm_torchrec.datasets.prepared.files import NewFile, Stored
from dlrm_torchrec.datasets.prepared.writer import SplitWriter
from dlrm_torchrec.preparation.passes.encode import encode, prepared_schema
from dlrm_torchrec.preparation.passes.quarantine import add_rejected
from dlrm_torchrec.preparation.passes.shuffle import ShufflingWriter
from dlrm_torchrec.preparation.passes.tally import Tally
from dlrm_torchrec.preparation.readers.rows import Rows
from dlrm_torchrec.preparation.splits import times_of
from dlrm_torchrec.preparation.vocabularies.vocabulary import Vocabulary
from dlrm_torchrec.preparation.work.recorded_work import FOLDER
from dlrm_torchrec.preparation.work.units import Unit
from dlrm_torchrec.preparation.work.workers import Report
from dlrm_torchrec.raw_values import TextForm
from dlrm_torchrec.schema import DatasetSpec

_TIME = pa.timestamp("us", "UTC")


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How rows are stored in files."""

    row_group_rows: int
    shuffled: str  # the split whose rows are shuffled
    window_rows: int  # size of the windows; 0 keeps the order of the rows
    seed: int
    time: str = ""  # a raw column of times that the files keep beside those of the spec; empty means none


def write_unit(
    unit: Unit,
    report: Report,
    *,
    spec: DatasetSpec,
    vocabularies: Mapping[str, Vocabulary],
    output: str,
    layout: Layout,
) -> tuple[list[Stored], dict[str, Any]]:
    """The files of a unit (its quarantined rows, then Parquet by split), its tally, and the rows of each file."""
    tally, schema, kept = Tally(), prepared_schema(spec), [layout.time] if layout.time else []
    for name in kept:
        schema = schema.append(pa.field(name, _TIME))
    writers: dict[str, SplitWriter] = {}
    order: dict[str, ShufflingWriter] = {}
    with ExitStack() as stack:
        rejected = stack.enter_context(NewFile(output, quarantine_path(unit)))
        for split in unit.assignment.splits:
            writer = SplitWriter(
                output,
                split,
                unit=unit.number,
                schema=schema,
                row_group_rows=layout.row_group_rows,
                bounded=kept,
            )
            writers[split] = stack.enter_context(writer)
            if split == layout.shuffled and layout.window_rows:
                order[split] = ShufflingWriter(writer, window_rows=layout.window_rows, seed=(layout.seed, unit.number))
        for piece, by_split in unit.pieces(report):
            tally.read(piece)
            add_rejected(rejected, unit.path, piece.rejected)
            for split, rows in by_split.items():
                encoded = encode(rows, spec, vocabularies)
                tally.wrote(split, rows, encoded, spec)
                for name in kept:
                    encoded = encoded.append_column(schema.field(name), _times(rows, name, spec))
                (order.get(split) or writers[split]).write(encoded)
        for shuffling in order.values():
            shuffling.flush()
    parts = [(split, file, rows) for split, writer in writers.items() for file, rows in writer.files]
    result = {
        "tally": tally.to_json(),
        "parts": [(split, file.path, rows, file.sha256) for split, file, rows in parts],
    }
    return [rejected.stored, *(file for _, file, _ in parts)], result


def _times(rows: Rows, column: str, spec: DatasetSpec) -> Any:
    """The times of rows, null where they are unknown."""
    form = TextForm(missing=spec.missing, decimal=spec.decimal, thousands=spec.thousands)
    microseconds, known = times_of(rows, column, form)
    return pa.array(microseconds, mask=~known).cast(_TIME)


def quarantine_path(unit: Unit) -> str:
    """The file that keeps the malformed rows of a unit until all units are done."""
    return f"{FOLDER}/quarantine-{unit.number:05d}.tsv"
