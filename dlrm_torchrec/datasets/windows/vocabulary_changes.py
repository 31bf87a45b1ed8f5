"""Which ids mean something else in another prepared folder, and where the rows of its values were before.

A model that goes on with the second folder moves rows by ``origins``, and begins the rows of ``fresh`` ids anew: their
weights are drawn and the moments of their optimizer are 0.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from iopath.common.file_io import g_pathmgr

from dlrm_torchrec.datasets.prepared.manifest import Manifest, join
from dlrm_torchrec.schema import SparseFeature, vocabulary_path

Ids = npt.NDArray[np.int64]

_FIRST = 2  # the first id of a value; 0 means missing and 1 unseen, in every vocabulary
_NONE = -1


@dataclass(frozen=True, eq=False)
class VocabularyChanges:
    """The changes of one feature between two vocabularies; all ids are in ascending order."""

    rows_before: int
    added: Ids  # ids that have a value now and had none, those of new rows included
    removed: Ids  # ids that had a value and have none now, those of rows that are gone included
    replaced: Ids  # ids whose value is another one now
    origins: Ids  # (rows,) the old id of what each id means now; -1 if it had none

    @property
    def rows(self) -> int:
        """The rows of the new table."""
        return len(self.origins)

    @property
    def fresh(self) -> Ids:
        """The ids whose value had no row: those for which nothing was trained."""
        return np.setdiff1d(self.changed, np.flatnonzero(self.origins != _NONE))

    @property
    def changed(self) -> Ids:
        """The ids that mean another value than before, also one that had another row."""
        return np.union1d(self.added, self.replaced)

    @property
    def stable(self) -> bool:
        """Whether every value that both vocabularies have kept its id, as in a chain of folders."""
        moved = self.origins != np.arange(self.rows)
        return not (moved & (self.origins != _NONE)).any()


def vocabulary_changes(before: str, after: str) -> dict[str, VocabularyChanges]:
    """The changes of each feature with a vocabulary between two prepared folders, which may be of different chains.

    Values are compared in memory, a table at a time. Features that share a table share their changes. Raises ValueError
    when the folders do not have the same features.
    """
    old, new = (
        {feature.name: feature for feature in Manifest.load(folder).stored_spec.sparse} for folder in (before, after)
    )
    unlike = sorted(
        name for name in {**old, **new} if name not in old or name not in new or _unlike(old[name], new[name])
    )
    if unlike:
        raise ValueError(
            f"features of {after} must be those of {before}: got other {unlike[:5]}; prepare both with one spec"
        )
    tables: dict[str, VocabularyChanges] = {}
    for feature in new.values():
        if feature.encoding == "vocab" and feature.table_name not in tables:
            path = vocabulary_path(feature)
            tables[feature.table_name] = compared(_read(join(before, path)), _read(join(after, path)))
    return {name: tables[feature.table_name] for name, feature in new.items() if feature.encoding == "vocab"}


def compared(before: Any, after: Any) -> VocabularyChanges:
    """The changes from one vocabulary to another: Arrow arrays of the values in id order, null for a free id."""
    if before.type != after.type:
        before, after = before.cast(pa.string()), after.cast(pa.string())
    rows = _FIRST + len(after)
    had, has = (np.zeros(max(rows, _FIRST + len(before)), bool) for _ in range(2))
    had[_FIRST : _FIRST + len(before)], has[_FIRST:rows] = (_numpy(each.is_valid()) for each in (before, after))
    origins = np.append([0, 1], _FIRST + _numpy(pc.index_in(after, value_set=before).fill_null(_NONE - _FIRST)))
    origins[~has[:rows]] = _NONE
    origins[:_FIRST] = 0, 1
    same = np.zeros(len(has), bool)
    same[:rows] = origins == np.arange(rows)
    return VocabularyChanges(
        rows_before=_FIRST + len(before),
        added=np.flatnonzero(has & ~had),
        removed=np.flatnonzero(had & ~has),
        replaced=np.flatnonzero(had & has & ~same),
        origins=origins.astype(np.int64),
    )


def _unlike(one: SparseFeature, other: SparseFeature) -> bool:
    """Whether features differ in more than what preparation measures."""
    measured = {"rows": 1 << 20, "vocabulary": "", "pooling_factor": 1.0, "boundaries": ()}
    return replace(one, **measured) != replace(other, **measured)  # type: ignore[arg-type]  # of fields of four types


def _read(path: str) -> Any:
    with g_pathmgr.open(path, "rb") as stream:
        return pq.read_table(stream)["value"].combine_chunks()


def _numpy(array: Any) -> npt.NDArray[Any]:
    found: npt.NDArray[Any] = array.to_numpy(zero_copy_only=False)
    return found
