"""Counts how often the ids of prepared data are looked up, per sparse feature, and keeps it in ``dataset.json``.

    python -m dlrm_torchrec.datasets.profile prepared/criteo-kaggle

prints a table, and writes the statistics and the pooling factors that plans use. The features are read one after the
other, so the memory holds 16 bytes per row of one table, a row group of one column, and a window. The most frequent ids
of tables that are in no order, such as hashed ones, go into frequent.safetensors, which hot_cold tables need
(``--tables.frequent``); their counts take 8 bytes per row until the end.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import count, pairwise, takewhile
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
import tyro
from iopath.common.file_io import g_pathmgr
from numpy.typing import NDArray
from safetensors.numpy import save

from dlrm_torchrec.datasets.numpy_columns import IdLists
from dlrm_torchrec.datasets.prepared.decode import check_schema, read_bags
from dlrm_torchrec.datasets.prepared.expand import Expander
from dlrm_torchrec.datasets.prepared.manifest import NAME, Manifest, join
from dlrm_torchrec.schema import WINDOW_ROWS, AccessStatistics, SparseFeature, Table


def access_statistics(pieces: Iterable[IdLists], rows: int, window_rows: int = WINDOW_ROWS) -> AccessStatistics:
    """The statistics of one feature from its bags in their order; the pieces may have any size.

    Every id must lie in [0, ``rows``), and there must be at least one bag.
    """
    counted = _counted(pieces, rows, window_rows)
    return summary(counted.counts, counted.samples, reuse=counted.reuse)


class _Counted(NamedTuple):
    counts: NDArray[np.int64]  # lookups of each id
    samples: int
    reuse: float


def _counted(pieces: Iterable[IdLists], rows: int, window_rows: int = WINDOW_ROWS) -> _Counted:
    counts = np.zeros(rows, dtype=np.int64)
    samples = lookups = first_lookups = 0
    for window, ids in _windows(pieces, window_rows):
        samples += window
        lookups += len(ids)
        first_lookups += _count(counts, ids)
    return _Counted(counts, samples, (lookups - first_lookups) / max(1, lookups))


def _most_frequent(counts: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """At most ``most`` ids that are looked up, the most frequent first, and equal ones in order."""
    ids = np.flatnonzero(counts)
    return ids[np.argsort(-counts[ids], kind="stable")][:most]


def summary(counts: NDArray[np.int64], samples: int, *, reuse: float) -> AccessStatistics:
    """The statistics of ids that are looked up ``counts`` times (ids,) in ``samples`` rows; sorts ``counts``."""
    counts.sort()  # in place, because they may take most of the memory
    seen = counts[np.searchsorted(counts, 1) :]
    distinct, lookups = len(seen), int(seen.sum())
    bounds = np.searchsorted(seen, [1 << power for power in range(int(counts[-1]).bit_length() + 1)])
    return AccessStatistics(
        samples=samples,
        lookups=lookups,
        distinct=distinct,
        top_mass=tuple(
            (k, int(seen[-k:].sum()) / lookups) for k in takewhile(lambda k: k <= distinct, (10**n for n in count()))
        ),
        reuse=reuse,
        histogram=tuple((int(stop - start), int(seen[start:stop].sum())) for start, stop in pairwise(bounds)),
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


def _count(counts: NDArray[np.int64], ids: NDArray[np.int64]) -> int:
    """The number of distinct ids in ``ids`` (V,); each lookup is added to ``counts`` (rows,)."""
    before, positions = counts[ids], np.arange(len(ids))
    counts[ids] = positions  # one lookup of each id stays: this needs no sorting and no second array
    distinct = int(np.count_nonzero(counts[ids] == positions))
    counts[ids] = before
    np.add.at(counts, ids, 1)
    return distinct


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

    Raises ValueError when the folder has no such table of as many rows.
    """
    counts = np.zeros(table.rows, np.int64)
    features = [feature for feature in manifest.spec.sparse if feature.name in table.features]
    if len(features) != len(table.features) or any(feature.rows != table.rows for feature in features):
        raise ValueError(
            f"data must have the {table.rows} ids of table {table.name!r}: got {folder}; name the folder of the run"
        )
    for feature in features:
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
        counted = _counted(read_feature(manifest, prepared, split, feature), feature.rows)
        if feature.encoding != "vocab":
            of_table = tables[feature.name]
            totals[of_table] = totals.get(of_table, 0) + counted.counts
        access = summary(counted.counts.copy(), counted.samples, reuse=counted.reuse)
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
