"""Scores a file in parts, each of which is written as a whole, so that a later start goes on after the last one."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from dlrm_torchrec.inference.batch.rows import Rows
from dlrm_torchrec.inference.predictor import MANIFEST, Predictor

BATCH_ROWS = 1024  # of the model
PART_ROWS = 256 * BATCH_ROWS
JOB = "job.json"

Scored = Callable[[int], None]  # told the number of rows that are scored


class Parts:
    """The finished parts of an output, in a folder next to it, with the job that they belong to.

    Until it is closed, no other process takes the folder.
    """

    def __init__(self, output: Path, job: dict[str, Any], *, replace: bool = False) -> None:
        """ValueError if another process fills the folder, or if it holds anything but parts of this job.

        With ``replace``, parts of another job are removed.
        """
        self.output = output
        self.folder = output.with_name(f"{output.name}.parts")
        text = json.dumps(job, sort_keys=True)
        if self.folder.is_dir() and any(self.folder.iterdir()):
            if not (self.folder / JOB).is_file():
                raise ValueError(f"{self.folder} must hold parts of scores: got no {JOB}; name another output")
            if (self.folder / JOB).read_text(encoding="utf-8") != text:
                if not replace:
                    raise ValueError(
                        f"{self.folder} must hold parts of this package and input: got parts of others; name another "
                        "output, or remove them with --force"
                    )
                _locked(self.folder).close()  # nobody is at work there
                shutil.rmtree(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder / JOB).exists():
            _write_whole(self.folder / JOB, lambda path: path.write_text(text, encoding="utf-8"))
        self._lock = _locked(self.folder)
        self.count = 0
        while self._path(self.count).exists():
            self.count += 1

    def add(self, table: pa.Table) -> None:
        _write_whole(self._path(self.count), lambda path: pq.write_table(table, path))
        self.count += 1

    def __iter__(self) -> Iterator[pa.Table]:
        return (pq.read_table(self._path(number)) for number in range(self.count))

    def schemas(self) -> Iterator[pa.Schema]:
        return (pq.read_schema(self._path(number)) for number in range(self.count))

    def num_rows(self) -> int:
        return sum(pq.read_metadata(self._path(number)).num_rows for number in range(self.count))

    def join(self, schema: pa.Schema) -> None:
        """Writes the output, CSV if it is named so, and removes the parts."""
        _write_tables(self.output, self, schema)
        shutil.rmtree(self.folder)

    def close(self) -> None:
        """Lets other processes take the folder."""
        self._lock.close()

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:06}.parquet"


def score(predictor: Predictor, rows: Rows, parts: Parts, scored: Scored) -> dict[str, int]:
    """Writes a row of predictions for each row, in their order; the number of unseen values of each feature.

    The output has the column "probability" for a single label of 0 and 1, and else one for each label, float32. If a
    row is a user, it has a list of predictions there, one for each candidate. If the model ranks items, it has the
    lists "items" and "scores" of the best ones.
    """
    kind = pa.list_(pa.float32()) if predictor.spec.get("history") or predictor.ranked else pa.float32()
    schema = pa.schema(dict.fromkeys(predictor.answers, kind))
    if predictor.ranked:
        schema = schema.set(0, pa.field("items", pa.list_(predictor.items.values.type)))
    done = parts.num_rows()
    scored(done)
    if done == parts.count * PART_ROWS:  # else the last part was the end
        for first, table in _tables(rows, done):
            predictions, unseen = [], Counter[str]()
            for start in range(0, table.num_rows, BATCH_ROWS):
                batch = table[start : start + BATCH_ROWS]
                try:
                    found = predictor(_columns(batch))
                except ValueError as error:
                    raise _of_row(predictor, batch, first + start) or error from error
                overflows = ~np.isfinite(found.predictions).all(axis=1)
                if overflows.any():
                    place = int(overflows.argmax())
                    if found.groups is not None:
                        place = int(found.groups.cumsum().searchsorted(place, side="right"))
                    row = first + start + place
                    raise ValueError(
                        f"row {row} of the input, counted from 0, must give a finite prediction: got values that "
                        "overflow the model; correct it"
                    )
                predictions.append(pa.table(found.columns(), schema=schema))
                unseen.update(found.unseen)
                scored(first + start + batch.num_rows)
            parts.add(pa.concat_tables(predictions).replace_schema_metadata({"unseen": json.dumps(unseen)}))
    total = Counter[str]()
    for each in parts.schemas():
        total.update(json.loads(each.metadata[b"unseen"]))
    parts.join(schema)
    return dict(total)


def _columns(table: pa.Table) -> dict[str, Any]:
    return {name: table[name] for name in table.column_names}


def _of_row(predictor: Predictor, batch: pa.Table, first: int) -> ValueError | None:
    """The error of the first row that cannot be encoded alone, with its number; None if each of them can."""
    for row in range(batch.num_rows):
        try:
            predictor.encode(_columns(batch[row : row + 1]))
        except ValueError as error:
            alone = str(error).replace(" in row 0", "")
            return ValueError(f"row {first + row} of the input, counted from 0: {alone}")
    return None


def job(package: Path, source: Path, options: dict[str, Any]) -> dict[str, Any]:
    """What parts depend on; the input is told by its size and its time of change."""
    found = source.stat()
    return {
        "package": sha256((package / MANIFEST).read_bytes()).hexdigest(),
        "input": [str(source.resolve()), found.st_size, found.st_mtime_ns],
        "rows": [PART_ROWS, BATCH_ROWS],
        **options,
    }


def _tables(rows: Rows, start: int) -> Iterator[tuple[int, pa.Table]]:
    """Tables of PART_ROWS rows from row ``start`` on, the last of which may have fewer, with their first rows."""
    waiting: list[pa.RecordBatch] = []
    count = 0
    for batch in rows.batches(start):
        while count + batch.num_rows >= PART_ROWS:
            fits = PART_ROWS - count
            yield start, pa.Table.from_batches([*waiting, batch[:fits]])
            start, count, waiting, batch = start + PART_ROWS, 0, [], batch[fits:]
        if batch.num_rows:
            waiting.append(batch)
            count += batch.num_rows
    if waiting:
        yield start, pa.Table.from_batches(waiting)


def _locked(folder: Path) -> IO[bytes]:
    """A file that, until it is closed or its process ends, keeps other processes from the folder."""
    file = (folder / JOB).open("rb")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise ValueError(
            f"{folder} must be filled by one command at a time: got another at work ({error}); wait for its end, or "
            "name another output"
        ) from None
    return file


def write_table(output: Path, table: pa.Table) -> None:
    """Writes the whole table, as CSV if it is named so."""
    _write_tables(output, [table], table.schema)


def _write_tables(output: Path, tables: Iterable[pa.Table], schema: pa.Schema) -> None:
    def write(path: Path) -> None:
        is_csv = output.suffix == ".csv"
        writer: Any = pacsv.CSVWriter(path, schema) if is_csv else pq.ParquetWriter(path, schema)
        with writer:
            for table in tables:
                writer.write_table(table.replace_schema_metadata())

    _write_whole(output, write)


def _write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Writes the whole file, or nothing if it is interrupted."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(partial)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
