"""Classes of ids by a user's file: a table of values of a feature and their classes, such as brand or genre."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as csv
import pyarrow.parquet as pq
import torch
from iopath.common.file_io import g_pathmgr

from dlrm_torchrec.embeddings.compositional.partitions.assigned import Assigned
from dlrm_torchrec.inference.encoder import Encoder
from dlrm_torchrec.inference.lookups import FIRST, MISSING, Vocabulary
from dlrm_torchrec.schema import DatasetSpec, SparseFeature


@dataclass(frozen=True, kw_only=True)
class UserClasses:
    """The classes of every id on each level, by a file."""

    assigned: Assigned
    names: list[str]  # of the levels: the file's columns after the first
    unknown: int  # values of the file that the feature does not have
    without: int  # ids that the file does not have, missing and unseen values among them


def read_classes(path: str, spec: DatasetSpec, feature: SparseFeature, vocabulary: str | None) -> UserClasses:
    """The classes in a CSV or Parquet file, whose first column holds values and each other one classes of a level.

    Values are read as preparation reads them, and classes are compared as text. Class 0 of each level is for ids that
    the file does not have, or that have no class there; the others follow in the order of their texts.

    Args:
        path: the file
        spec: the data set
        feature: the feature whose values the first column holds
        vocabulary: the local file of the feature's vocabulary, if it has one

    Raises ValueError when there is no column of classes, or when a value stands there twice with different classes.
    """
    table = _read(path)
    if table.num_columns < 2 or not table.num_rows or feature.encoding == "bucket":
        raise ValueError(
            f"{path} must have a column of values of {feature.name!r}, which are categories, and columns of classes: "
            f"got {table.column_names} with {table.num_rows} rows; add a column"
        )
    ids, unknown = _ids(table[table.column_names[0]].combine_chunks(), spec, feature, vocabulary)
    known = np.flatnonzero(ids >= 0)
    levels, names = [], table.column_names[1:]
    for name in names:
        words = pc.utf8_trim_whitespace(table[name].combine_chunks().cast(pa.string()))
        words = pc.if_else(pc.equal(words, ""), pa.scalar(None, pa.string()), words)
        distinct = pc.unique(words.take(pa.array(known)).drop_null())
        distinct = distinct.take(pc.array_sort_indices(distinct))
        classes = pc.index_in(words, value_set=distinct).fill_null(-1).to_numpy() + 1
        levels.append(_of_ids(path, feature, ids[known], classes[known]))
    without = int(feature.rows - len(np.unique(ids[known])))
    assigned = Assigned([torch.from_numpy(level) for level in levels], complementary=False)
    return UserClasses(assigned=assigned, names=names, unknown=unknown, without=without)


def _of_ids(path: str, feature: SparseFeature, ids: Any, classes: Any) -> Any:
    """The class of every id of the feature."""
    of_ids = np.zeros(feature.rows, np.int64)
    of_ids[ids] = classes
    twice = np.flatnonzero(of_ids[ids] != classes)
    if len(twice) and feature.encoding != "hash":  # several values may have one hash
        raise ValueError(
            f"{path} must give each value of {feature.name!r} one class per column: got two for the value of id "
            f"{ids[twice[0]]}; remove one"
        )
    return of_ids


def _ids(values: Any, spec: DatasetSpec, feature: SparseFeature, vocabulary: str | None) -> tuple[Any, int]:
    """The id of each value, -1 for missing and unknown ones, and how many are unknown."""
    single = replace(feature, multi_hot=False, weights="")
    alone = asdict(replace(spec, dense=(), sparse=(single,), history=None))
    lookups = (
        {}
        if vocabulary is None
        else {feature.name: Vocabulary.of(pq.read_table(vocabulary)["value"].combine_chunks()).lookup}
    )
    inputs = Encoder(alone, lookups)({feature.raw: values})
    ids, least = inputs.ids[0], FIRST if feature.encoding == "vocab" else MISSING + 1
    return np.where(ids >= least, ids, -1), int(inputs.unseen[0])


def _read(path: str) -> Any:
    with g_pathmgr.open(path, "rb") as stream:
        if path.endswith(".parquet"):
            return pq.read_table(stream)
        return csv.read_csv(stream)
