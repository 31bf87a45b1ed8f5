"""Counts how often the ids of prepared data are looked up, per sparse feature, and keeps it in ``dataset.json``.

    python -m dlrm_torchrec.datasets.profile prepared/criteo-kaggle

prints a table, and writes the statistics and the pooling factors that plans use. The features are read one after the
other, so the memory holds 8 bytes per row of one table, a row group of one column, and a window. Ids that a table
manages are counted in files, and may be more than its rows. The most frequent ids of tables that are in no order, such
as hashed ones, go into frequent.safetensors, which hot_cold tables need (``--tables.frequent``); their counts take 8
bytes per row until the end.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import count as count_from
from itertools import takewhile

import numpy as np
import pyarrow.parquet as pq
import tyro
from iopath.common.file_io import g_pathmgr
from numpy.typing import NDArray
from safetensors.numpy import save

from dlrm_torchrec.datasets.numpy_columns import IdLists
from dlrm_torchrec.datasets.prepared.decode import check_schema, read_bags
from dlrm_torchrec.datasets.prepared.expand import Expander
from dlrm_torchrec.datasets.prepared.id_counts import IdCounts, ManagedCounts, RowCounts, occurrences
from dlrm_torchrec.datasets.prepared.manifest import NAME, Manifest, join
from dlrm_torchrec.datasets.sequences.stored import read_log
from dlrm_torchrec.schema import WINDOW_ROWS, AccessStatistics, SparseFeature, Table


def access_statistics(pieces: Iterable[IdLists], rows: int, window_rows: int = WINDOW_ROWS) -> AccessStatistics:
    """The statistics of one feature from its bags in their order; the pieces may have any size.

    Every id must lie in [0, ``rows``), and there must be at least one bag.
    """
    return _counted(pieces, RowCounts(rows), window_rows)


def _counted(pieces: Iterable[IdLists], counts: IdCounts, window_rows: int = WINDOW_ROWS) -> AccessStatistics:
    """The statistics of one feature; its lookups are added to ``counts``, which must be new."""
    samples = lookups = first_lookups = 0
    for window, ids in _windows(pieces, window_rows):
        samples += window
        lookups += len(ids)
        first_lookups += counts.add(ids)
    return _summary(counts.occurrences(), samples, reuse=(lookups - first_lookups) / max(1, lookups))


def _most_frequent(counts: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """At most ``most`` ids that are looked up, the most frequent first, and equal ones in order."""
    ids = np.flatnonzero(counts)
    return ids[np.argsort(-counts[ids], kind="stable")][:most]


def summary(counts: NDArray[np.int64], samples: int, *, reuse: float) -> AccessStatistics:
    """The statistics of ids that are looked up ``counts`` times (ids,) in ``samples`` rows."""
    return _summary(occurrences(counts), samples, reuse=reuse)


def _summary(ids_of: Mapping[int, int], samples: int, *, reuse: float) -> AccessStatistics:
    """The statistics of ids in ``samples`` rows; ``ids_of`` tells how many ids have each number of lookups."""
    counts = sorted(ids_of, reverse=True)
    ids = np.cumsum([ids_of[count] for count in counts], dtype=np.int64)
    lookups = np.cumsum([ids_of[count] * count for count in counts], dtype=np.int64)
    distinct, total = (int(each[-1]) if counts else 0 for each in (ids, lookups))

    def most_frequent(k: int) -> int:
        """The lookups of the k most frequent ids."""
        at = int(np.searchsorted(ids, k))
        return int(lookups[at]) - (int(ids[at]) - k) * counts[at]

    histogram = [[0, 0] for _ in range(max(counts, default=0).bit_length())]
    for count, how_many in ids_of.items():
        entry = histogram[count.bit_length() - 1]
        entry[0], entry[1] = entry[0] + how_many, entry[1] + count * how_many
    return AccessStatistics(
        samples=samples,
        lookups=total,
        distinct=distinct,
        top_mass=tuple(
            (k, most_frequent(k) / total) for k in takewhile(lambda k: k <= distinct, (10**n for n in count_from(0)))
        ),
        reuse=reuse,
        histogram=tuple((entry[0], entry[1]) for entry in histogram),
    )


def _windows(pieces: Iterable[IdLists], window_rows: int) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """The number of rows and the ids of each window of consecutive rows; the last window may be shorter."""
    parts: list[NDArray[np.integer]] = []
    missing = window_rows
    for bags in pieces:
        first, rows = 0, len(bags.lengths)
        while first < rows:
            last = min(first + missing, rows)
            parts.append(bags.slice(first, last).values)
            missing -= last - first
            first = last
            if missing == 0:
                yield window_rows, np.concatenate(parts, dtype=np.int64)
                parts, missing = [], window_rows
    if parts:
        yield window_rows - missing, np.concatenate(parts, dtype=np.int64)


def read_feature(manifest: Manifest, folder: str, split: str, feature: SparseFeature) -> Iterator[IdLists]:
    """The bags of one feature by row group. Raises ValueError if a file breaks the manifest or the spec."""
    stored = manifest.stored_spec
    stored = replace(stored, dense=(), sparse=tuple(f for f in stored.sparse if f.name == feature.name))
    expander = Expander(manifest, folder)
    for file in manifest.splits[split].files:
        path = file.location(folder)
        with g_pathmgr.open(path, "rb") as raw:
            parquet = pq.ParquetFile(raw)
            check_schema(parquet.schema_arrow, stored, path)
            if parquet.metadata.num_rows != file.rows:
                raise ValueError(
                    f"file {path} must have the {file.rows} rows of its manifest: got {parquet.metadata.num_rows}; "
                    "prepare it again"
                )
            for group in range(parquet.num_row_groups):
                yield expander.bags(feature.name, read_bags(parquet, group, stored.sparse[0], path))


def lookups_of_ids(manifest: Manifest, folder: str, table: Table) -> NDArray[np.int64]:
    """How often each id (rows,) of a table is looked up in the training rows of the prepared ``folder``.

    Of histories, all events count. Raises ValueError when the folder has no such table of as many rows, when the table
    manages its ids, or when it is that of a cross, whose ids no file holds.
    """
    if table.managed:
        raise ValueError(
            f"ids of table {table.name!r} must be its rows to be counted: got a table that manages 64-bit ids; name "
            "another table"
        )
    counts = np.zeros(table.rows, np.int64)
    features = [feature for feature in manifest.spec.sparse if feature.name in table.features]
    if len(features) != len(table.features) or any(feature.rows != table.rows for feature in features):
        raise ValueError(
            f"data must have the {table.rows} ids of table {table.name!r}: got {folder}; name the folder of the run"
        )
    history = manifest.spec.history
    log = None if history is None else read_log(manifest, folder)
    for feature in features:
        if history is not None and feature.name in history.cross_names:
            raise ValueError(
                f"ids of table {table.name!r} must lie in files to be counted: got those of cross {feature.name!r}, "
                "which are computed from others; name other tables"
            )
        if log is not None:
            counts += np.bincount(({**log.events, **log.users})[feature.name], minlength=table.rows)
            continue
        for bags in read_feature(manifest, folder, "train", feature):
            counts += np.bincount(bags.values, minlength=table.rows)
    return counts


def main(prepared: tyro.conf.Positional[str], split: str = "train", frequent: int = 100_000) -> None:
    """Count how often each id of a prepared folder is looked up, print it, and write it into its dataset.json.

    Args:
        prepared: folder with a dataset.json
        split: split whose rows are counted
        frequent: most ids per table in frequent.safetensors, which is for tables whose ids are in no order
    """
    manifest = Manifest.load(prepared)
    if manifest.spec.history is not None:
        raise ValueError(
            f"profiled data must have rows: got the histories of users in {prepared}; leave it out, because plans of "
            "histories go by Zipf's law"
        )
    if split not in manifest.splits or not manifest.splits[split].rows:
        rows = {name: part.rows for name, part in manifest.splits.items()}
        raise ValueError(f"split must be one of {prepared} that has rows: got {split!r} of {rows}; name another")
    spec = manifest.spec
    width = max(len("feature"), *(len(feature.name) for feature in spec.sparse))
    print(f"{'feature':{width}}  table rows    distinct    used  pooling   top 1  top 100  top 10k   reuse")
    statistics: dict[str, AccessStatistics] = {}
    tables = {name: table.name for table in spec.tables(dim=1) for name in table.features}
    totals: dict[str, NDArray[np.int64]] = {}
    for feature in spec.sparse:
        counts = ManagedCounts() if feature.encoding == "managed" else RowCounts(feature.rows)
        access = _counted(read_feature(manifest, prepared, split, feature), counts)
        if isinstance(counts, RowCounts) and feature.encoding != "vocab":
            of_table = tables[feature.name]
            totals[of_table] = totals.get(of_table, 0) + counts.counts
        print(f"{feature.name:{width}}  {_row(access, feature.rows)}", flush=True)  # the next feature may take minutes
        statistics[feature.name] = access
    sparse = tuple(replace(f, pooling_factor=statistics[f.name].pooling_factor) for f in spec.sparse)
    replace(manifest, spec=replace(spec, sparse=sparse), statistics=statistics).save(prepared)
    print(f"{manifest.splits[split].rows:,} rows of split {split!r}; statistics are in {join(prepared, NAME)}")
    if totals:
        path = join(prepared, "frequent.safetensors")
        with g_pathmgr.open(path, "wb") as stream:
            stream.write(save({table: _most_frequent(counts, frequent) for table, counts in totals.items()}))
        print(f"the most frequent ids of {len(totals)} tables whose ids are in no order are in {path}")


def _row(access: AccessStatistics, rows: int) -> str:
    mass = dict(access.top_mass)
    top = (mass.get(k, 1.0) for k in (1, 100, 10_000))  # all lookups, if there are fewer ids than k
    shares = "  ".join(f"{share:{width}.1%}" for share, width in zip((*top, access.reuse), (6, 7, 7, 6), strict=True))
    return f"{rows:10,}  {access.distinct:10,}  {access.distinct / rows:6.1%}  {access.pooling_factor:7.2f}  {shares}"


if __name__ == "__main__":
    try:
        tyro.cli(main)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
