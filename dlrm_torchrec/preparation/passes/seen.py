"""Keeps in vocabularies what the events before a time have, so that later events meet unknown values as new data do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from iopath.common.file_io import g_pathmgr
from numpy.typing import NDArray

from dlrm_torchrec.datasets.prepared.files import NewFile, join
from dlrm_torchrec.datasets.prepared.manifest import Manifest
from dlrm_torchrec.preparation.passes.gather import event_tables
from dlrm_torchrec.preparation.readers.events import MICROS
from dlrm_torchrec.preparation.vocabularies.vocabulary import FIRST, MISSING, UNSEEN
from dlrm_torchrec.raw_values import kinds, vocabulary_digest
from dlrm_torchrec.schema import SparseFeature, vocabulary_path
from dlrm_torchrec.sequence_schema import TIME

Ids = NDArray[np.int32]
Counts = NDArray[np.int64]


def count_until(events: Manifest, folder: str, names: Sequence[str], end_s: int) -> dict[str, Counts]:
    """How many events before a time have each id (rows,) of the features ``names``."""
    found = {feature.name: np.zeros(feature.rows, np.int64) for feature in events.spec.sparse if feature.name in names}
    for table in event_tables(events, folder, [TIME, *names]):
        early = table[TIME].to_numpy() < end_s * MICROS
        for name in names:
            ids, counts = np.unique(table[name].to_numpy()[early], return_counts=True)
            found[name][ids] += counts
    return found


def keep_counted(feature: SparseFeature, counts: Counts, folder: str, output: str) -> tuple[SparseFeature, Ids]:
    """The feature with a vocabulary of the values that are counted ``min_count`` times, and the new id of each old one.

    ``folder`` has the vocabulary of the ids that are counted, and ``output`` then has the new one. It is the one that
    ``build_vocabulary`` makes of the same values.
    """
    with g_pathmgr.open(join(folder, vocabulary_path(feature)), "rb") as source:
        values = pq.read_table(source)["value"].combine_chunks()
    kept = np.flatnonzero(counts[FIRST:] >= feature.min_count)
    order = kept[np.lexsort((_ascending(values)[kept], -counts[FIRST:][kept]))]
    new_values = values.take(pa.array(order))
    numbers, texts = kinds(new_values)
    if texts.null_count == len(texts):
        new_values = numbers
    with NewFile(output, vocabulary_path(feature)) as file:
        pq.write_table(pa.table({"value": new_values}), file)
    new_ids = np.full(feature.rows, UNSEEN, np.int32)
    new_ids[MISSING] = MISSING
    new_ids[FIRST + order] = FIRST + np.arange(len(order), dtype=np.int32)
    return replace(feature, rows=FIRST + len(order), vocabulary=vocabulary_digest([new_values])), new_ids


def _ascending(values: Any) -> NDArray[np.int64]:
    """The place (N,) of each value when they ascend, whole numbers before texts."""
    places, before = np.empty(len(values), np.int64), 0
    for part in kinds(values):
        order = pc.array_sort_indices(part).to_numpy()[: len(part) - part.null_count]
        places[order] = before + np.arange(len(order))
        before += len(order)
    return places
