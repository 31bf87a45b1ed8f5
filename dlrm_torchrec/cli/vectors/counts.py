"""How often training saw each id of a feature, counted in the prepared rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dlrm_torchrec.datasets.prepared.manifest import Manifest
from dlrm_torchrec.datasets.profile import read_feature
from dlrm_torchrec.schema import SparseFeature

MOST_ROWS = 1 << 24  # that are counted: some seconds; rows of prepared data are mixed


@dataclass(frozen=True)
class Counts:
    """How often each id (rows,) occurs in the first ``counted`` of ``rows`` training rows."""

    times: npt.NDArray[np.int64]
    counted: int
    rows: int

    def __str__(self) -> str:
        if self.counted < self.rows:
            return f"times in the first {self.counted:,} of {self.rows:,} training rows"
        return f"times in {self.rows:,} training rows"


def training_counts(manifest: Manifest, folder: str, feature: SparseFeature) -> Counts | None:
    """Counts in the split ``train`` of a prepared folder, or None when it has no such rows."""
    rows = manifest.splits["train"].rows if "train" in manifest.splits else 0
    if not rows:
        return None
    times, counted = np.zeros(feature.rows, np.int64), 0
    for bags in read_feature(manifest, folder, "train", feature):
        np.add.at(times, bags.values, 1)
        counted += len(bags.lengths)
        if counted >= MOST_ROWS:
            break
    return Counts(times, counted, rows)
