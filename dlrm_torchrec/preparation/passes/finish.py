"""Joins the output of all units into one prepared folder and writes ``dataset.json`` last."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from functools import partial
from typing import Any

from dlrm_torchrec.datasets.prepared.files import Stored, digest, join, write_json
from dlrm_torchrec.datasets.prepared.lineage import Lineage
from dlrm_torchrec.datasets.prepared.manifest import DataFile, Manifest, SourceFile, Split
from dlrm_torchrec.preparation.passes.quarantine import join_quarantine
from dlrm_torchrec.preparation.passes.tally import Tally, report, total
from dlrm_torchrec.preparation.passes.write import quarantine_path
from dlrm_torchrec.preparation.work.output_folder import QUARANTINE, REPORT, sweep
from dlrm_torchrec.preparation.work.recorded_work import Record
from dlrm_torchrec.preparation.work.units import Source, Unit
from dlrm_torchrec.preparation.work.workers import Report
from dlrm_torchrec.schema import DatasetSpec


class UnfitRowsError(ValueError):
    """The rows were read, and cannot be trained on: the files must be repaired, or another share be allowed."""


def read_source(source: Source, progress: Report) -> tuple[list[Stored], dict[str, Any]]:
    """Path, size and SHA-256 of a raw file, as in ``SourceFile``."""
    size, sha256 = digest(source.path, partial(progress, 0))
    return [], {"path": source.path, "bytes": size, "sha256": sha256}


def finish(
    output: str,
    spec: DatasetSpec,
    *,
    train: str,
    sources: Sequence[Source],
    read: Sequence[Record],
    units: Sequence[Unit],
    written: Sequence[Record],
    max_bad_share: float,
    one_class: Collection[str],
    lineage: Lineage | None,
) -> Manifest:
    """The saved manifest of ``output``, made from the records of ``read_source`` and ``write_unit``.

    Raises ValueError, after it wrote the quarantine and the report, when the data cannot be trained on: UnfitRowsError
    when the rows are the reason, not their labels.
    """
    tallies = [Tally.from_json(record.result["tally"]) for record in written]
    everything = total(tallies)
    splits = list(dict.fromkeys([train, *(split for source in sources for split in source.assignment.splits)]))
    by_source = [
        (
            source.path,
            source.reader.labelled,
            total(t for t, unit in zip(tallies, units, strict=True) if unit.source == i),
        )
        for i, source in enumerate(sources)
    ]
    counts = report(by_source, splits)
    join_quarantine(output, [quarantine_path(unit) for unit in units])
    write_json(output, REPORT, counts, indent=1)
    _judge(everything, train, output, max_bad_share)
    if spec.target == "binary":
        labelled = {split for source in sources if source.reader.labelled for split in source.assignment.splits}
        _check_classes(everything, spec, [name for name in splits if name in labelled and name not in one_class])
    parts = [part for record in written for part in record.result["parts"]]
    manifest = Manifest(
        spec=everything.with_pooling(spec, train),
        splits={
            name: Split(
                files=tuple(
                    DataFile(path=path, rows=rows, sha256=sha) for split, path, rows, sha in parts if split == name
                )
            )
            for name in splits
        },
        sources=tuple(SourceFile(**record.result) for record in read),
        report=counts,
        lineage=lineage,
    )
    sweep(output)
    manifest.save(output)
    return manifest


def _check_classes(everything: Tally, spec: DatasetSpec, splits: Iterable[str]) -> None:
    for split in splits:
        rows, positives = everything.rows[split], everything.positives[split]
        if rows and not 0 < positives < rows:
            meaning = "1" if spec.positive_label is None else repr(spec.positive_label)
            raise ValueError(
                f"labels of split {split!r} must have both classes: got {positives} of {rows} rows with {meaning} in "
                f"column {spec.label!r}; correct label or positive_label in the spec, or split the rows otherwise"
            )


def _judge(everything: Tally, train: str, output: str, max_bad_share: float) -> None:
    bad, rows = everything.rows_quarantined, everything.rows_in
    if bad > max_bad_share * rows:
        reason, count = everything.reasons.most_common(1)[0]
        raise UnfitRowsError(
            f"malformed rows must be at most {max_bad_share:.2%} of all: got {bad} of {rows}, {count} of them because "
            f"'{reason}'; see {join(output, QUARANTINE)}, then repair the files or raise --max-bad-share"
        )
    if not everything.rows[train]:
        raise UnfitRowsError(
            f"split {train!r} must have rows: got none of the {rows} rows read; check the files and how they are split"
        )
