"""Makes the rows of a prepared folder whose ids are traces, piece by piece."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from dlrm_torchrec.datasets.random.counter import derived_key, uniforms, words
from dlrm_torchrec.datasets.synthetic.zipf import scattering
from dlrm_torchrec.schema import DatasetSpec, DenseFeature, SparseFeature
from dlrm_torchrec.traces.trace_profile import FeatureProfile

_LABEL = "label"


class TraceRows:
    """``rows`` rows with ``dense`` uniform columns, ids, and a label whose probability is the first dense column.

    Row i of a feature with pooling factor p has floor((i + 1) p) - floor(i p) ids; all rows together follow the
    profile.
    """

    def __init__(self, features: Sequence[FeatureProfile], *, rows: int, dense: int, seed: int) -> None:
        self._features, self._taken = features, 0
        *keys, self._dense_key, self._label_key = (derived_key(seed, part) for part in range(len(features) + 2))
        self._traces = [
            feature.profile.trace(key, lookups=int(rows * feature.pooling_factor), rows=feature.rows)
            for feature, key in zip(features, keys, strict=True)
        ]
        self.spec = DatasetSpec(
            name="trace",
            label=_LABEL,
            dense=tuple(DenseFeature(name=f"dense_{number}") for number in range(dense)),
            sparse=tuple(
                SparseFeature(
                    name=feature.name,
                    rows=feature.rows,
                    multi_hot=feature.pooling_factor != 1,
                    pooling_factor=feature.pooling_factor,
                )
                for feature in features
            ),
        )
        self.schema = pa.schema(
            [
                *((name, pa.float32()) for name in (_LABEL, *(column.name for column in self.spec.dense))),
                *((f.name, pa.list_(pa.int32()) if f.multi_hot else pa.int32()) for f in self.spec.sparse),
            ]
        )

    def take(self, rows: int) -> pa.Table:
        """The next rows."""
        first, last = self._taken, self._taken + rows
        self._taken = last
        num_dense = len(self.spec.dense)
        numbers = uniforms(words(self._dense_key, np.arange(first * num_dense, last * num_dense)))
        dense = numbers.reshape(-1, num_dense)
        labels = uniforms(words(self._label_key, np.arange(first, last))) < dense[:, 0]
        columns = [pa.array(values.astype(np.float32)) for values in (labels, *dense.T)]
        for feature, trace in zip(self._features, self._traces, strict=True):
            bounds = (np.arange(first, last + 1) * feature.pooling_factor).astype(np.int64)
            ids = trace.take(int(bounds[-1] - bounds[0])).astype(np.int64) * scattering(feature.rows) % feature.rows
            values = pa.array(ids.astype(np.int32))
            if feature.pooling_factor != 1:
                values = pa.ListArray.from_arrays(pa.array(bounds - bounds[0], pa.int32()), values)
            columns.append(values)
        return pa.table(columns, schema=self.schema)
