"""Which row of an earlier data set's tables holds the value of each row of another one's tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from iopath.common.file_io import g_pathmgr
from numpy.typing import NDArray

from dlrm_torchrec.datasets.open import SYNTHETIC, vocabularies
from dlrm_torchrec.datasets.prepared.manifest import join
from dlrm_torchrec.datasets.windows.folders import first_folder
from dlrm_torchrec.datasets.windows.vocabulary_changes import compared
from dlrm_torchrec.schema import DatasetSpec, SparseFeature


@dataclass(frozen=True)
class RowMap:
    """For each row of a table, the row of the same value in a table of ``old_rows`` rows; -1 where there is none."""

    old_rows: int
    rows: NDArray[np.int64]  # (new rows,)


def row_maps(old_spec: Any, old_data: str, last: str, *, spec: DatasetSpec, data: str) -> dict[str, RowMap]:
    """A map for each table whose rows changed their places from the data ``old_data`` to ``data``, by its name.

    Plain ids keep their places, also in a table that became larger or smaller. Raises ValueError when the same feature
    now gives other ids to its values, without a vocabulary that tells them.

    Args:
        old_spec: the spec of the earlier data, as JSON
        old_data: a prepared folder, or a folder of such folders
        last: the name of the last folder that was trained on, whose vocabularies count; empty if there is but one
        spec: the new spec
        data: a prepared folder, or a folder of such folders, the first of which counts
    """
    old = DatasetSpec.from_json(old_spec)
    old_data = join(old_data, last) if last and g_pathmgr.isdir(join(old_data, last)) else first_folder(old_data)
    data = first_folder(data)
    names = {feature: table.name for table in spec.tables(dim=1) for feature in table.features}
    before = {feature.name: feature for feature in old.sparse}
    found: dict[str, RowMap] = {}
    for feature in spec.sparse:
        earlier = before.get(feature.name)
        if earlier is None or names[feature.name] in found:
            continue
        same = _ids(earlier) == _ids(feature)
        told = feature.encoding != "vocab" or feature.vocabulary or data == SYNTHETIC  # by the spec alone
        if same and told:
            continue
        if (earlier.encoding, feature.encoding) == ("vocab", "vocab"):
            changes = compared(_values(old_data, old, feature.name), _values(data, spec, feature.name))
            if changes.rows != changes.rows_before or (changes.origins != np.arange(changes.rows)).any():
                found[names[feature.name]] = RowMap(earlier.rows, changes.origins)
        elif (earlier.encoding, feature.encoding) == ("id", "id"):
            rows = np.arange(feature.rows)
            found[names[feature.name]] = RowMap(earlier.rows, np.where(rows < earlier.rows, rows, -1))
        else:
            raise ValueError(
                f"feature {feature.name!r} must give its values the ids that they had in {old_data}: got "
                f"{feature.encoding} with {feature.rows} rows after {earlier.encoding} with {earlier.rows}; prepare "
                "the data with its encoding, rows and boundaries"
            )
    return found


def _ids(feature: SparseFeature) -> tuple[object, ...]:
    """Equal for two features that give the same ids to the same values."""
    return feature.encoding, feature.rows, feature.boundaries, feature.vocabulary, feature.part


def _values(data: str, spec: DatasetSpec, feature: str) -> pa.Array:
    """The values of the vocabulary of a feature in the folder ``data``, in the order of their ids."""
    with open(vocabularies(data, spec)[feature], "rb") as file:
        return pq.read_table(file)["value"].combine_chunks()
