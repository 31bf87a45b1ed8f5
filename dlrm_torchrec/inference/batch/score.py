"""Scores a file in parts, each of which is written as a whole, so that a later start goes on after the last one."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

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
    """The finished parts of an output, in a folder next to it, with the job that they belong to."""

    def __init__(self, output: Path, job: dict[str, Any]) -> None:
        """Starts anew if the folder holds parts of another job; ValueError if it holds anything else."""
        self.output = output
        self.folder = output.with_name(f"{output.name}.parts")
        self.were_of_another_job = False
        text = json.dumps(job, sort_keys=True)
        if self.folder.is_dir() and any(self.folder.iterdir()):
            if not (self.folder / JOB).is_file():
                raise ValueError(f"{self.folder} must hold parts of scores: got no {JOB}; name another output")
            if (self.folder / JOB).read_text(encoding="utf-8") != text:
                self.were_of_another_job = True
                shutil.rmtree(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder / JOB).exists():
            _write_whole(self.folder / JOB, lambda path: path.write_text(text, encoding="utf-8"))
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

        def write(path: Path) -> None:
            is_csv = self.output.suffix == ".csv"
            writer: Any = pacsv.CSVWriter(path, schema) if is_csv else pq.ParquetWriter(path, schema)
            with writer:
                for table in self:
                    writer.write_table(table.replace_schema_metadata())

        _write_whole(self.output, write)
        shutil.rmtree(self.folder)

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:06}.parquet"


def score(predictor: Predictor, rows: Rows, parts: Parts, scored: Scored) -> dict[str, int]:
    """Writes a row of predictions for each row, in their order; the number of unseen values of each feature.

    The output has the column "probability" for a single label of 0 and 1, and else one for each label, float32.
    """
    names = ["probability"] if predictor.is_single_probability else list(predictor.labels)
    schema = pa.schema(dict.fromkeys(names, pa.float32()))
    done = parts.num_rows()
    scored(done)
    if done == parts.count * PART_ROWS:  # else the last part was the end
        for first, table in _tables(rows, done):
            predictions, unseen = [], Counter[str]()
            for start in range(0, table.num_rows, BATCH_ROWS):
                batch = table[start : start + BATCH_ROWS]
                try:
                    found = predictor({name: batch[name] for name in predictor.columns})
                except ValueError as error:
                    last = first + start + batch.num_rows - 1
                    raise ValueError(f"rows {first + start} to {last} of the input: {error}") from error
                if not np.isfinite(found.predictions).all():
                    raise ValueError(
                        f"rows {first + start} on must give finite predictions: got a row whose values overflow the "
                        "model; correct it"
                    )
                predictions.append(found.predictions)
                unseen.update(found.unseen)
                scored(first + start + batch.num_rows)
            columns = np.concatenate(predictions).T
            described = schema.with_metadata({"unseen": json.dumps(unseen)})
            parts.add(pa.Table.from_arrays([pa.array(column) for column in columns], schema=described))
    total = Counter[str]()
    for each in parts.schemas():
        total.update(json.loads(each.metadata[b"unseen"]))
    parts.join(schema)
    return dict(total)


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
