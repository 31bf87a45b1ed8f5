"""The dense columns and the ids of synthetic rows, drawn from the keys of the rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dlrm_torchrec.datasets.numpy_columns import IdLists
from dlrm_torchrec.datasets.random import counter
from dlrm_torchrec.datasets.random.normal import normals
from dlrm_torchrec.datasets.synthetic.kernels import fill_bags, fill_uniforms
from dlrm_torchrec.datasets.synthetic.zipf import Zipf
from dlrm_torchrec.schema import DatasetSpec


class RowFeatures:
    """Draws dense columns that are standard normal, and for each sparse feature ids from its ``Zipf`` distribution.

    A multi-hot bag has 0 to 2 x pooling_factor ids, and each length is equally likely.
    """

    def __init__(self, spec: DatasetSpec, zipf: Sequence[Zipf]) -> None:
        self._num_dense, self._zipf = len(spec.dense), zipf
        self._max_lengths = [round(2 * f.pooling_factor) if f.multi_hot else None for f in spec.sparse]

    def __call__(self, row_keys: counter.Words) -> tuple[NDArray[np.float32], list[IdLists]]:
        """The dense columns (n, D) and the F bags of the n rows with these keys."""
        # Counters within a row: 0 is the label, then come the dense columns; sparse feature f starts at 2^32 (f + 1).
        dense = normals(counter.words(row_keys[:, None], np.arange(1, 1 + -(-self._num_dense // 4))))
        sparse = []
        for index, (zipf, max_length) in enumerate(zip(self._zipf, self._max_lengths, strict=True)):
            first = (index + 1) << 32
            if max_length is None:
                offsets, points = None, uniforms(row_keys, first + 1)
            else:
                lengths = (uniforms(row_keys, first) * (max_length + 1)).astype(np.int64)
                offsets = np.concatenate([[0], np.cumsum(lengths)])
                points = np.empty(offsets[-1])
                fill_bags(row_keys, offsets, np.uint64(first + 1), points)
            sparse.append(IdLists(zipf.ids(points), offsets))
        return dense[:, : self._num_dense], sparse


def uniforms(row_keys: counter.Words, number: int) -> NDArray[np.float64]:
    """The number in [0, 1) with the same counter in each row."""
    found = np.empty(len(row_keys))
    fill_uniforms(row_keys, np.uint64(number), found)
    return found
