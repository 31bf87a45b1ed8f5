"""A known model that labels synthetic rows, so that the best possible AUC is known."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from dlrm_torchrec.datasets.numpy_columns import IdLists
from dlrm_torchrec.datasets.random import counter
from dlrm_torchrec.datasets.random.normal import NORMALS, normals
from dlrm_torchrec.datasets.synthetic.kernels import GROUPS, add_effects
from dlrm_torchrec.datasets.synthetic.logit import Logit
from dlrm_torchrec.schema import DatasetSpec

Floats = NDArray[np.float64]

_NONE = np.empty(0, np.int64)


class Teacher:
    """P(label = 1 | row). Each id of each sparse feature has an effect and a slope, which are hashed from the id.

    The logit is the sum of three terms with fixed shares of its variance: w · x of the dense columns x; the sum of the
    effects of all ids; and the sum of their slopes times u · x, a second-order term that a dot interaction can learn.
    The logit is scaled to the standard deviation ``logit_std`` and shifted to the rate ``positive_rate``. Effects and
    slopes are summed over a bag, as tables sum their vectors. No weight is stored, so tables may have any size.
    The ids of a feature are in 64 hidden groups: ids of a group have the share ``grouped`` of the variance of their
    effects and slopes in common, and the rest is their own.
    """

    def __init__(
        self, spec: DatasetSpec, seed: int, *, positive_rate: float, logit_std: float, grouped: float = 0.0
    ) -> None:
        if not 0 <= grouped <= 1:
            raise ValueError(f"grouped must be a share of the ids' effects: got {grouped}; try .9, or 0 for no groups")
        self._grouped = grouped
        self._logit_of = partial(Logit.of, positive_rate=positive_rate, logit_std=logit_std)
        *self._sparse_keys, dense_key = counter.words(counter.words(seed, 0), np.arange(len(spec.sparse) + 1))
        self._dense_weights = _weights(dense_key, np.arange(len(spec.dense))).astype(np.float64)
        self._bag_scale = [max(1.0, feature.pooling_factor) ** -0.5 for feature in spec.sparse]
        self._logit: Logit | None = None

    def groups(self, feature: int, rows: int) -> NDArray[np.int64]:
        """The hidden group of each of the ``rows`` ids of a sparse feature: (rows,), from 0 to 63."""
        return (counter.words(self._sparse_keys[feature], np.arange(rows)) >> np.uint64(32)).astype(np.int64) % GROUPS

    def calibrate(self, dense: NDArray[np.float32], sparse: Sequence[IdLists]) -> None:
        """Set the scales and the bias by these rows, a sample of the rows to be labelled."""
        self._logit = self._logit_of(self._terms(dense, sparse))

    def probabilities(self, dense: NDArray[np.float32], sparse: Sequence[IdLists]) -> Floats:
        """P(label = 1) of every row: (n,), from dense (n, D) and F bags of n rows."""
        assert self._logit is not None
        return self._logit.probabilities(self._terms(dense, sparse))

    def _terms(self, dense: NDArray[np.float32], sparse: Sequence[IdLists]) -> Floats:
        """The three terms of the logit, unscaled: (3, n)."""
        # Column by column, not by BLAS, because the sum of a row must not depend on its batch.
        from_dense, from_ids = np.zeros((2, 2, len(dense)))
        for column, weights in zip(dense.T, self._dense_weights, strict=True):
            from_dense += weights[:, None] * column
        for bags, key, scale in zip(sparse, self._sparse_keys, self._bag_scale, strict=True):
            offsets = _NONE if bags.offsets is None else bags.offsets
            add_effects(key, bags.values.astype(np.int64, copy=False), offsets, scale, self._grouped, NORMALS, from_ids)
        return np.stack([from_dense[0], from_ids[0], from_dense[1] * from_ids[1]])


def _weights(key: np.uint64, ids: NDArray[np.integer]) -> NDArray[np.float32]:
    """The effect and the slope of every id, standard normal: (V,) gives (V, 2)."""
    return normals(counter.words(key, ids)[:, None])[:, :2]
