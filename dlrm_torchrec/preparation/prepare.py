"""Turns raw files into a prepared folder: Parquet per split, vocabularies, quarantine, report and ``dataset.json``.

Files are cut into units of work, which any number of processes and machines share. The output of a unit depends on the
unit alone, and is kept with its checksum. So a preparation may be interrupted at any moment: the same command resumes
it, and the folder is the same in the end, byte for byte. Memory is bounded for any data.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, replace
from functools import partial

from iopath.common.file_io import g_pathmgr

from dlrm_torchrec import __version__
from dlrm_torchrec.datasets.prepared.files import explained
from dlrm_torchrec.datasets.prepared.lineage import TrainedFile
from dlrm_torchrec.datasets.prepared.manifest import Manifest
from dlrm_torchrec.datasets.prepared.writer import ROW_GROUP_ROWS
from dlrm_torchrec.preparation.passes.continuing import Chain
from dlrm_torchrec.preparation.passes.continuing import Window as Window  # callers need this name, too
from dlrm_torchrec.preparation.passes.count import adopt, measure, vocabulary_features, vocabulary_records
from dlrm_torchrec.preparation.passes.finish import finish, read_source
from dlrm_torchrec.preparation.passes.latest import with_starts
from dlrm_torchrec.preparation.passes.write import Layout, write_unit
from dlrm_torchrec.preparation.readers.spans import cut, span_bytes
from dlrm_torchrec.preparation.work.budget import Budget
from dlrm_torchrec.preparation.work.group import Group
from dlrm_torchrec.preparation.work.progress import Progress
from dlrm_torchrec.preparation.work.recorded_work import Record, RecordedWork
from dlrm_torchrec.preparation.work.units import Source as Source  # callers need this name, too
from dlrm_torchrec.preparation.work.units import check_distinct, check_new, line_tasks, make_units
from dlrm_torchrec.preparation.work.workers import Task, run_tasks
from dlrm_torchrec.schema import DatasetSpec, DenseFeature, SparseFeature

TRAIN = "train"
LABELLED_SPLITS = (TRAIN, "val", "test")
MEMORY_BYTES = 2 << 30


def prepare(
    spec: DatasetSpec,
    sources: Sequence[Source],
    output: str,
    *,
    earlier: str = "",
    window: Window | None = None,
    one_class: Collection[str] = (),
    max_bad_share: float = 0.01,
    overwrite: bool = False,
    row_group_rows: int = ROW_GROUP_ROWS,
    shuffle_window_rows: int = 0,
    seed: int = 0,
    time: str = "",
    workers: int | None = None,
    memory_bytes: int = MEMORY_BYTES,
    unit_bytes: int | None = None,
    rank_timeout_s: float = 300.0,
) -> Manifest:
    """The manifest of ``output``, which then holds the prepared rows of ``sources``.

    Vocabularies, scales and pooling factors are measured on the training rows, or taken from the prepared folder
    ``earlier``, so that a model that was trained on that folder can read these rows. With ``window``, the vocabularies
    continue those of the folder of the window before, and keep the counts that the next window needs; scales and
    boundaries stay those of the first window. If ``shuffle_window_rows`` is not
    0, the training rows of a unit are shuffled within windows of that size. A unit is about ``unit_bytes`` of a plain
    text or Parquet file, or a whole gzip file. ``workers`` processes (default: one per core) use about ``memory_bytes``
    together. Malformed rows go to ``quarantine.tsv`` and are counted in ``report.json``.
    With ``time``, a raw column that the readers give beside those of the spec, the files keep the time of each row.

    If it is started as several ranks (RANK and WORLD_SIZE of the environment), all with the same arguments and a shared
    folder, each rank prepares its part of the units. A rank that is silent for ``rank_timeout_s`` ends the others.

    Raises ValueError and writes no ``dataset.json`` when more than ``max_bad_share`` of the rows are malformed, when no
    training row is left, or when all labels of a split are equal and ``one_class`` does not name it. Raises ValueError
    also when ``output`` is prepared already, or was begun by another command, and ``overwrite`` is not set. Raises
    OSError when files cannot be read or written, or when a worker or a rank dies. After most errors the same command
    resumes with the finished units.
    """
    _check_numbers(unit_bytes=(unit_bytes, 1), shuffle_window_rows=(shuffle_window_rows, 0), seed=(seed, 0))
    _check_numbers(workers=(workers, 1), memory_bytes=(memory_bytes, 1))
    _check(sources)
    if time in spec.prepared_names:
        raise ValueError(
            f"the column of times must have a name that no prepared column has: got {time!r}; rename the feature, and "
            "keep the raw name in 'column'"
        )
    identities = [source.identity() for source in sources]
    check_distinct(identities)
    chain = Chain(window) if window else None
    if chain:
        check_new([source.path for source in sources if _trains(source)], chain.known_sources)
    raw_bytes = sum(identity["bytes"] for identity in identities)
    budget = Budget.of(memory_bytes, workers=workers, raw_bytes=raw_bytes)
    window_rows = shuffle_window_rows
    layout = Layout(row_group_rows=row_group_rows, shuffled=TRAIN, window_rows=window_rows, seed=seed, time=time)
    _check_window(spec, layout, budget)
    unit_bytes = unit_bytes or span_bytes(raw_bytes)
    before = earlier or (window.after if window else "")
    spec = _continued(spec, before) if before else spec
    command = {"version": __version__, "spec": spec.to_json(), "sources": identities, "unit_bytes": unit_bytes}
    command |= {"earlier": earlier, "window": chain.identity if chain else None}
    work, group = RecordedWork(output), Group(output, rank_timeout_s)
    try:
        group.begin(json.loads(json.dumps({**command, **asdict(layout)})), overwrite=overwrite)
        run = partial(_run, group, group.sync, workers=budget.workers)
        spans = [cut(source.path, unit_bytes) for source in sources]
        run("counting lines", line_tasks(sources, spans, work))
        units = with_starts(make_units(sources, spans, work), work, run, output)
        if earlier:
            vocabularies = adopt(earlier, spec, work, run, output=output)
        else:
            counted = [unit for unit in units if unit.feeds(TRAIN)]
            limit_bytes = budget.counted_bytes
            spec, vocabularies = measure(
                spec, counted, work, run, split=TRAIN, output=output, limit_bytes=limit_bytes, chain=chain
            )
        reading = {
            f"source-{i:05d}": work.task(f"source-{i:05d}", source.path, size["bytes"], partial(read_source, source))
            for i, (source, size) in enumerate(zip(sources, identities, strict=True))
        }
        write = partial(write_unit, spec=spec, vocabularies=vocabularies, output=output, layout=layout)
        writing = {
            name: work.task(name, unit.what, unit.span.bytes, partial(write, unit))
            for unit in units
            for name in [f"write-{unit.number:05d}"]
        }
        _run(group, group.end, "writing rows", reading | writing, workers=budget.workers)
        if group.rank:
            return Manifest.load(output)
        read, written = work.records(reading), work.records(writing)
        manifest = finish(
            output,
            spec,
            train=TRAIN,
            sources=sources,
            read=read,
            units=units,
            written=written,
            max_bad_share=max_bad_share,
            one_class=one_class,
            lineage=chain.lineage(vocabulary_records(vocabulary_features(spec), work), _files(sources, read))
            if chain
            else None,
        )
        work.remove()
    except OSError as error:
        told = explained(error, output)
        group.fail(told)
        raise told from error
    except Exception as error:
        group.fail(error)
        raise
    return manifest


def _run(group: Group, meet: Callable[[str], None], title: str, tasks: dict[str, Task], *, workers: int) -> None:
    """Do this rank's share of the tasks, then ``meet`` the other ranks."""
    mine = list(tasks.values())[group.rank :: group.size]
    if mine:
        name = f"rank {group.rank} of {group.size}, {title}" if group.size > 1 else title
        with Progress(name, sum(task.bytes for task in mine)) as progress:

            def report(rows: int, raw_bytes: int) -> None:
                progress.add(rows, raw_bytes)
                group.beat()

            run_tasks(mine, workers, report)
    meet(title)


def _continued(spec: DatasetSpec, earlier: str) -> DatasetSpec:
    """The spec of the prepared folder ``earlier``, which must agree with ``spec`` in all that a person writes."""
    known = Manifest.load(earlier).stored_spec
    ours, theirs = (_as_written(each) for each in (spec, known))
    for name in ("label", "positive_label", "target", "more_labels", "weight", "missing", "decimal", "thousands"):
        if getattr(ours, name) != getattr(theirs, name):
            raise ValueError(
                f"{name} of the spec must be that of {earlier}, whose vocabularies are to be used: got "
                f"{getattr(ours, name)!r} in place of {getattr(theirs, name)!r}; use the spec of that folder"
            )
    features = {feature.name: feature for feature in _features(theirs)}
    unlike = [feature.name for feature in _features(ours) if features.pop(feature.name, None) != feature]
    if unlike or features:
        raise ValueError(
            f"features of the spec must be those of {earlier}, whose vocabularies are to be used: got others for "
            f"{[*unlike, *features][:5]}; use the spec of that folder"
        )
    return known


def _trains(source: Source) -> bool:
    """Whether rows of a source may be training rows."""
    return TRAIN in source.assignment.splits


def _files(sources: Sequence[Source], read: Sequence[Record]) -> list[TrainedFile]:
    """The files with training rows, from the records of ``read_source``."""
    facts = [record.result for source, record in zip(sources, read, strict=True) if _trains(source)]
    return [TrainedFile(bytes=fact["bytes"], sha256=fact["sha256"]) for fact in facts]


def _features(spec: DatasetSpec) -> list[DenseFeature | SparseFeature]:
    return [*spec.dense, *spec.sparse]


def _as_written(spec: DatasetSpec) -> DatasetSpec:
    """The spec without what preparation measures."""
    dense = tuple(replace(feature, mean=None, deviation=None) for feature in spec.dense)
    sparse = tuple(
        replace(
            feature,
            rows=0 if feature.encoding == "vocab" else feature.rows,
            boundaries=(),
            vocabulary="",
            pooling_factor=1.0,
        )
        for feature in spec.sparse
    )
    return replace(spec, name="", dense=dense, sparse=sparse)


def _check_numbers(**limits: tuple[int | None, int]) -> None:
    """Raises ValueError if a number is less than the least value given with it."""
    for name, (value, least) in limits.items():
        if value is not None and value < least:
            raise ValueError(f"{name} must be at least {least}: got {value}; raise it")


def _check(sources: Sequence[Source]) -> None:
    for source in sources:
        if not g_pathmgr.isfile(source.path):
            raise ValueError(f"source {source.path} must be a file: got none; check the path")
        unfit = sorted(set(source.assignment.splits) & set(LABELLED_SPLITS))
        if unfit and not source.reader.labelled:
            raise ValueError(
                f"source {source.path} must have labels to go to {unfit}: got a file without labels; "
                "prepare it as a split with another name"
            )


def _check_window(spec: DatasetSpec, layout: Layout, budget: Budget) -> None:
    row_bytes = 4 * (1 + len(spec.dense) + sum(max(1.0, feature.pooling_factor) for feature in spec.sparse))
    if layout.window_rows * row_bytes > budget.window_bytes:
        raise ValueError(
            f"shuffle_window_rows must fit the memory of each of {budget.workers} workers, "
            f"{int(budget.window_bytes / row_bytes):,} rows: got {layout.window_rows:,}; lower it or the number of "
            "workers, or raise memory_bytes"
        )
