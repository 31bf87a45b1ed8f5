"""Raw files to a prepared folder: Parquet per split, vocabularies, quarantine, report and ``dataset.json``.

Files are streamed piece by piece: once over the training rows to count vocabularies, once to write. Memory holds one
piece, one row group per split, and the distinct values of each vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from iopath.common.file_io import g_pathmgr

from dlrm_torchrec.datasets.encode import encode, prepared_schema
from dlrm_torchrec.datasets.folder import clear, source_file
from dlrm_torchrec.datasets.manifest import Manifest, Split, join
from dlrm_torchrec.datasets.quarantine import Quarantine
from dlrm_torchrec.datasets.rows import Reader, Rows
from dlrm_torchrec.datasets.splits import Assignment
from dlrm_torchrec.datasets.tally import Tally
from dlrm_torchrec.datasets.vocabulary import Vocabulary, VocabularyCounter
from dlrm_torchrec.datasets.writer import ROW_GROUP_ROWS, SplitWriter
from dlrm_torchrec.schema import DatasetSpec

TRAIN = "train"
LABELLED_SPLITS = (TRAIN, "val", "test")


@dataclass(frozen=True, kw_only=True)
class Source:
    """A raw file, how to read it, and which split each of its rows goes to."""

    path: str
    reader: Reader
    assignment: Assignment


def prepare(
    spec: DatasetSpec,
    sources: Sequence[Source],
    output: str,
    *,
    max_bad_share: float = 0.01,
    overwrite: bool = False,
    row_group_rows: int = ROW_GROUP_ROWS,
) -> Manifest:
    """The manifest of ``output``, which then holds the prepared rows of ``sources``.

    Vocabularies and pooling factors are measured on the training rows. Malformed rows go to ``quarantine.tsv`` and are
    counted in ``report.json``. ValueError, leaving no ``dataset.json``, when they are more than ``max_bad_share`` of
    all rows or when no training row is left; also when ``output`` is prepared already and ``overwrite`` is not set.
    """
    _check(sources)
    clear(output, overwrite)
    vocabularies = _count(spec, sources)
    spec = _with_vocabulary_rows(spec, vocabularies)
    with Quarantine(output) as kept:
        splits, tally = _write(spec, sources, output, vocabularies, kept, row_group_rows)
    with g_pathmgr.open(join(output, "report.json"), "w") as file:
        json.dump(tally.report(), file, indent=1)
    _judge(tally, output, max_bad_share)
    for name, vocabulary in vocabularies.items():
        g_pathmgr.mkdirs(join(output, "vocab"))
        vocabulary.save(join(output, "vocab", f"{name}.parquet"))
    manifest = Manifest(
        spec=tally.with_pooling(spec, TRAIN),
        splits=splits,
        sources=tuple(source_file(source.path) for source in sources),
        report=tally.report(),
    )
    manifest.save(output)
    return manifest


def _check(sources: Sequence[Source]) -> None:
    for source in sources:
        if not g_pathmgr.isfile(source.path):
            raise ValueError(f"source {source.path} must be a file: got none there; check the path")
        unfit = sorted(set(source.assignment.splits) & set(LABELLED_SPLITS))
        if unfit and not source.reader.labelled:
            raise ValueError(
                f"source {source.path} must have labels to go to {unfit}: got a file without; "
                "prepare it as a split of another name"
            )


def _pieces(source: Source) -> Iterator[tuple[Rows, dict[str, Rows]]]:
    """Each piece of a source, and its rows by split."""
    for piece in source.reader(source.path):
        place = source.assignment(piece.numbers)
        yield piece, {name: piece.select(place == i) for i, name in enumerate(source.assignment.splits)}


def _count(spec: DatasetSpec, sources: Sequence[Source]) -> dict[str, Vocabulary]:
    counters = {i: VocabularyCounter() for i, feature in enumerate(spec.sparse) if feature.encoding == "vocab"}
    for source in sources:
        if not counters or TRAIN not in source.assignment.splits:
            continue
        for _, rows in _pieces(source):
            for i, counter in counters.items():
                values = rows[TRAIN].sparse[i]
                counter.add(values.flatten() if spec.sparse[i].multi_hot else values)
    return {spec.sparse[i].name: counter.finish(spec.sparse[i].min_count) for i, counter in counters.items()}


def _with_vocabulary_rows(spec: DatasetSpec, vocabularies: Mapping[str, Vocabulary]) -> DatasetSpec:
    sparse = tuple(
        replace(feature, rows=vocabularies[feature.name].rows) if feature.name in vocabularies else feature
        for feature in spec.sparse
    )
    return replace(spec, sparse=sparse)


def _write(
    spec: DatasetSpec,
    sources: Sequence[Source],
    output: str,
    vocabularies: Mapping[str, Vocabulary],
    kept: Quarantine,
    row_group_rows: int,
) -> tuple[dict[str, Split], Tally]:
    tally, schema = Tally(), prepared_schema(spec)
    names = dict.fromkeys([TRAIN, *(name for source in sources for name in source.assignment.splits)])
    writers = {name: SplitWriter(output, name, schema, row_group_rows) for name in names}
    for source in sources:
        tally.start(source.path, source.reader.labelled)
        for piece, by_split in _pieces(source):
            tally.read(piece)
            for rejected in piece.rejected:
                kept.add(source.path, rejected)
            for name, rows in by_split.items():
                writers[name].write(encode(rows, spec, vocabularies))
                tally.wrote(name, rows, spec)
    return {name: writer.close() for name, writer in writers.items()}, tally


def _judge(tally: Tally, output: str, max_bad_share: float) -> None:
    bad, total = tally.rows_quarantined, tally.rows_in
    if bad > max_bad_share * total:
        reason, count = tally.reasons.most_common(1)[0]
        raise ValueError(
            f"malformed rows must be at most {max_bad_share:.2%} of all: got {bad} of {total}, {count} of them because "
            f"'{reason}'; see {join(output, 'quarantine.tsv')}, then repair the files or raise max_bad_share"
        )
    if not tally.rows[TRAIN]:
        raise ValueError(
            f"split {TRAIN!r} must have rows: got none of the {total} rows read; check the files and how they are split"
        )
