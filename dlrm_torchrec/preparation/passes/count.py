"""The first pass measures the training rows unit by unit: it counts categories, and sums up numbers.

Its results are vocabularies, means and deviations, and boundaries of buckets, which then stand in the spec.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from dlrm_torchrec.datasets.prepared.files import NewFile, Stored, join
from dlrm_torchrec.preparation.passes.continuing import Chain, task_result
from dlrm_torchrec.preparation.passes.scales import Moments, boundaries, in_order
from dlrm_torchrec.preparation.vocabularies.build import build_vocabulary, read_vocabulary
from dlrm_torchrec.preparation.vocabularies.counting import ValueCounter
from dlrm_torchrec.preparation.vocabularies.runs import Run, merge, open_run, write_run
from dlrm_torchrec.preparation.vocabularies.vocabulary import Vocabulary
from dlrm_torchrec.preparation.work.recorded_work import FOLDER, Record, RecordedWork
from dlrm_torchrec.preparation.work.units import Unit
from dlrm_torchrec.preparation.work.workers import Report, Task
from dlrm_torchrec.schema import DatasetSpec, SparseFeature, vocabulary_path

Runs = dict[str, dict[str, list[tuple[str, int]]]]  # by table and kind of values: files, and where a run begins in each
RunTasks = Callable[[str, dict[str, Task]], None]


def vocabulary_features(spec: DatasetSpec) -> dict[str, SparseFeature]:
    """One feature for each table that has a vocabulary."""
    features: dict[str, SparseFeature] = {}
    for feature in spec.sparse:
        if feature.encoding == "vocab":
            features.setdefault(feature.table_name, feature)
    return features


def measure(
    spec: DatasetSpec,
    units: Sequence[Unit],
    work: RecordedWork,
    run: RunTasks,
    *,
    split: str,
    output: str,
    limit_bytes: int,
    chain: Chain | None = None,
) -> tuple[DatasetSpec, dict[str, Vocabulary]]:
    """The spec with what is measured in the rows of ``split`` of some units, and the vocabularies by table.

    They continue those of ``chain``, if there is one.
    """
    features, to_bucket = vocabulary_features(spec), _to_bucket(spec)
    if not features and not to_bucket and not _to_standardise(spec):
        return spec, {}
    count = partial(count_unit, split=split, spec=spec, output=output, limit_bytes=limit_bytes)
    counting = {
        name: work.task(name, unit.what, unit.span.bytes, partial(count, unit))
        for unit in units
        for name in [f"count-{unit.number:05d}"]
    }
    run("counting values", counting)
    counted = work.records(counting)
    making: dict[str, Task] = {}
    for i, (table, feature) in enumerate(features.items()):
        make = partial(_make_vocabulary, feature, number=i, counted=counted, output=output, work=work, chain=chain)
        making[f"vocabulary-{i:05d}"] = work.task(f"vocabulary-{i:05d}", f"the vocabulary of {table}", 1, make)
    for i, feature in enumerate(to_bucket):
        find = partial(_find_boundaries, feature, counted=counted, output=output, scratch=work.scratch)
        making[f"buckets-{i:05d}"] = work.task(f"buckets-{i:05d}", f"the buckets of {feature.name}", 1, find)
    if making:
        run("making vocabularies", making)
    vocabularies = _load(features, work, output)
    found = [record.result for record in work.records(f"buckets-{i:05d}" for i in range(len(to_bucket)))]
    bounds = {feature.name: tuple(result) for feature, result in zip(to_bucket, found, strict=True)}
    return _with_measured(_standardised(spec, counted), vocabularies, bounds), vocabularies


def adopt(earlier: str, spec: DatasetSpec, work: RecordedWork, run: RunTasks, *, output: str) -> dict[str, Vocabulary]:
    """The vocabularies of ``spec`` by table, as they are in the prepared folder ``earlier``."""
    features, making = vocabulary_features(spec), {}
    for i, (table, feature) in enumerate(features.items()):
        read = partial(_read_vocabulary, feature, earlier=earlier, number=i, output=output)
        making[f"vocabulary-{i:05d}"] = work.task(f"vocabulary-{i:05d}", f"the vocabulary of {table}", 1, read)
    if making:
        run("reading vocabularies", making)
    return _load(features, work, output)


def count_unit(
    unit: Unit, report: Report, *, split: str, spec: DatasetSpec, output: str, limit_bytes: int
) -> tuple[list[Stored], dict[str, Any]]:
    """Files with the runs of counted values of a unit's rows of one split; where runs begin; and sums of numbers.

    When counts outgrow ``limit_bytes``, they are written to a file, and counting begins again.
    """
    counters = {table: ValueCounter() for table in vocabulary_features(spec)}
    counters |= {_counts_of(feature): ValueCounter() for feature in _to_bucket(spec)}
    moments = {i: Moments() for i in _to_standardise(spec)}
    files: list[Stored] = []
    runs: Runs = defaultdict(lambda: defaultdict(list))

    def write() -> None:
        with NewFile(output, f"{FOLDER}/counts-{unit.number:05d}-{len(files):03d}.arrow") as file:
            for name, counter in counters.items():
                for kind, table in counter.take().items():
                    runs[name][kind].append((file.path, file.tell()))
                    write_run(file, [table])
                report(0, 0)
        files.append(file.stored)

    for _, by_split in unit.pieces(report):
        if split in by_split:
            rows = by_split[split]
            for feature, column in zip(spec.sparse, rows.sparse, strict=True):
                values = column.flatten() if feature.multi_hot else column
                if feature.encoding == "vocab":
                    counters[feature.table_name].add(values)
                elif _counts_of(feature) in counters:
                    counters[_counts_of(feature)].add(in_order(values))
            for i in moments:
                moments[i] += Moments.of(rows.dense[:, i], spec.dense[i])
            if sum(counter.nbytes for counter in counters.values()) > limit_bytes:
                write()
    write()
    return files, {"runs": runs, "moments": {spec.dense[i].name: vars(each) for i, each in moments.items()}}


def _counts_of(feature: SparseFeature) -> str:
    """The name of the counts of a feature's numbers; no table has it, because a name of two lines is none."""
    return f"{feature.name}\nbuckets"


def _to_bucket(spec: DatasetSpec) -> list[SparseFeature]:
    """The features whose boundaries are still to be measured."""
    return [feature for feature in spec.sparse if feature.encoding == "bucket" and not feature.boundaries]


def _to_standardise(spec: DatasetSpec) -> list[int]:
    """The places of the dense features whose mean is still to be measured."""
    return [i for i, feature in enumerate(spec.dense) if feature.standardise and feature.mean is None]


def _runs(counted: Iterable[Record], name: str, output: str) -> dict[str, list[Run]]:
    """The runs of counted values of all units, by kind of values."""
    runs: dict[str, list[Run]] = defaultdict(list)
    for record in counted:
        for kind, places in record.result["runs"].get(name, {}).items():
            runs[kind] += [partial(open_run, join(output, path), start) for path, start in places]
    return runs


def _make_vocabulary(
    feature: SparseFeature,
    report: Report,
    *,
    number: int,
    counted: Iterable[Record],
    output: str,
    work: RecordedWork,
    chain: Chain | None,
) -> tuple[list[Stored], dict[str, Any]]:
    runs = _runs(counted, feature.table_name, output)
    if chain is not None:
        continued = chain.continued(feature, runs, report, number=number, output=output, scratch=work.scratch)
        report(0, 1)
        return continued.files, task_result(continued)
    rows, digest, files = build_vocabulary(
        runs,
        report,
        min_count=feature.min_count,
        folder=output,
        list_path=vocabulary_path(feature),
        table_path=f"{FOLDER}/table-{number:03d}",
        scratch_folder=work.scratch,
    )
    report(0, 1)
    return files, {"rows": rows, "digest": digest}


def _read_vocabulary(
    feature: SparseFeature, report: Report, *, earlier: str, number: int, output: str
) -> tuple[list[Stored], dict[str, Any]]:
    path = vocabulary_path(feature)
    rows, digest, files = read_vocabulary(
        join(earlier, path), report, folder=output, list_path=path, table_path=f"{FOLDER}/table-{number:03d}"
    )
    if feature.vocabulary not in ("", digest):
        raise ValueError(
            f"vocabulary {join(earlier, path)} must be the one that its dataset.json names, {feature.vocabulary}: got "
            f"{digest}; prepare {earlier} again"
        )
    report(0, 1)
    return files, {"rows": rows, "digest": digest}


def _find_boundaries(
    feature: SparseFeature, report: Report, *, counted: Iterable[Record], output: str, scratch: str | None
) -> tuple[list[Stored], list[float]]:
    runs = _runs(counted, _counts_of(feature), output)["numbers"]
    total = sum(int(table["count"].to_numpy().sum()) for table in merge(runs, scratch))
    report(0, 1)
    return [], boundaries(merge(runs, scratch), total, feature.rows - 2)


def _load(features: Iterable[str], work: RecordedWork, output: str) -> dict[str, Vocabulary]:
    """The vocabularies that tasks recorded, by table."""
    vocabularies = {}
    for table, record in vocabulary_records(features, work).items():
        paths = [join(output, file.path) for file in record.files if file.path.startswith(f"{FOLDER}/")]
        vocabularies[table] = Vocabulary.load(record.result["rows"], record.result["digest"], paths)
    return vocabularies


def vocabulary_records(features: Iterable[str], work: RecordedWork) -> dict[str, Record]:
    """What was recorded of the vocabulary of each table."""
    return {table: work.records([f"vocabulary-{i:05d}"])[0] for i, table in enumerate(features)}


def _standardised(spec: DatasetSpec, counted: Sequence[Record]) -> DatasetSpec:
    """The spec with mean and deviation of the features that lack them."""
    dense = list(spec.dense)
    for i in _to_standardise(spec):
        parts = (Moments(**record.result["moments"][dense[i].name]) for record in counted)
        dense[i] = sum(parts, Moments()).standardise(dense[i])
    return replace(spec, dense=tuple(dense))


def _with_measured(
    spec: DatasetSpec, vocabularies: Mapping[str, Vocabulary], bounds: Mapping[str, tuple[float, ...]]
) -> DatasetSpec:
    """The spec with the rows and digests of vocabularies, and with boundaries."""

    def measured(feature: SparseFeature) -> SparseFeature:
        if feature.encoding == "vocab":
            vocabulary = vocabularies[feature.table_name]
            return replace(feature, rows=vocabulary.rows, vocabulary=vocabulary.digest)
        return replace(feature, boundaries=bounds.get(feature.name, feature.boundaries))

    return replace(spec, sparse=tuple(map(measured, spec.sparse)))
