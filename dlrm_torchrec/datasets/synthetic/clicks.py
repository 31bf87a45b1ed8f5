"""Synthetic click data of any DatasetSpec. A known model, the teacher, draws its labels, so its best AUC is known."""

from __future__ import annotations

import functools
from collections.abc import Generator
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from dlrm_torchrec.datasets.ahead import BATCHES_AHEAD, ahead
from dlrm_torchrec.datasets.batch import Batch
from dlrm_torchrec.datasets.block import joined
from dlrm_torchrec.datasets.jagged import to_batch
from dlrm_torchrec.datasets.numpy_columns import Columns, IdLists
from dlrm_torchrec.datasets.random import counter
from dlrm_torchrec.datasets.random.normal import normals
from dlrm_torchrec.datasets.spec_checks import require
from dlrm_torchrec.datasets.stream import Ranks
from dlrm_torchrec.datasets.synthetic.kernels import fill_bags, fill_uniforms
from dlrm_torchrec.datasets.synthetic.teacher import Teacher
from dlrm_torchrec.datasets.synthetic.zipf import Zipf
from dlrm_torchrec.schema import DatasetSpec

Split = Literal["train", "val", "test"]

_SPLITS = ("train", "val", "test", "calibration")
_BLOCK_ROWS = 8192  # rows that are made at a time when a whole split is read


class SyntheticStream:
    """Batches in which each row is a pure function of (seed, split, index of the row).

    Dense columns are standard normal. Ids have a Zipf distribution with ``exponent``. A multi-hot bag has 0 to
    2 x pooling_factor ids, and each length is equally likely. Labels are drawn from a Teacher, which all splits of a
    seed share. One epoch has ``num_rows`` rows in ``ceil(num_rows / global_batch_size)`` steps.
    """

    def __init__(
        self,
        spec: DatasetSpec,
        *,
        split: Split = "train",
        num_rows: int,
        global_batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        exponent: float = 1.1,
        positive_rate: float = 0.25,
        logit_std: float = 1.75,
        grouped: float = 0.0,
    ) -> None:
        require(spec, "synthetic rows", id_weights=False)
        self.spec = spec
        if num_rows < 1:
            raise ValueError(f"num_rows must be positive: got {num_rows}; a demo takes about a million")
        self.num_rows = num_rows
        self._ranks = Ranks(global_batch_size, rank, world_size)
        self.num_steps = -(-num_rows // global_batch_size)
        self._split: Split = split
        self._seed = seed
        self._zipf = [Zipf(f.rows, exponent, by_frequency=f.encoding == "vocab") for f in spec.sparse]
        self._max_lengths = [round(2 * f.pooling_factor) if f.multi_hot else None for f in spec.sparse]
        self._teacher = Teacher(spec, seed, positive_rate=positive_rate, logit_std=logit_std, grouped=grouped)
        self._teacher.calibrate(*self._features(_row_keys(seed, "calibration", 0, _BLOCK_ROWS)))

    def batches(self, start_step: int = 0) -> Generator[Batch, None, None]:
        """This rank's share of the global batches ``start_step`` .. ``num_steps - 1``.

        A thread makes them in advance. With a GPU, they lie in pinned memory.
        """
        return ahead(self._batches(start_step), BATCHES_AHEAD)

    def _batches(self, start_step: int) -> Generator[Batch, None, None]:
        pin_memory = torch.cuda.is_available()
        for first, share in self._ranks.shares(self.num_rows, start_step):
            rows = joined(self.rows(first, first + share.num_rows), np.int64)
            yield to_batch(self.spec, [rows], share, pin_memory=pin_memory)

    def rows(self, first: int, last: int) -> Columns:
        """The rows ``first`` .. ``last - 1`` of the split, the same on every rank."""
        row_keys = _row_keys(self._seed, self._split, first, last)
        dense, sparse = self._features(row_keys)
        labels = _uniforms(row_keys, 0) < self._teacher.probabilities(dense, sparse)
        return Columns(labels.astype(np.float32), dense, sparse)

    def probabilities(self) -> torch.Tensor:
        """The teacher's P(label = 1) of every row of the split: (num_rows,) float64."""
        return self._judge[0]

    def best_auc(self) -> float:
        """The AUC of the teacher's own probabilities on the rows of this split; no model can expect a better one."""
        from torchmetrics.functional.classification import binary_auroc  # half a second, which no step needs

        probabilities, labels = self._judge
        return binary_auroc(probabilities, labels, validate_args=False).item()

    def groups(self, feature: str) -> NDArray[np.int64]:
        """The hidden group of every id of a sparse feature, see ``Teacher``: (rows,)."""
        number = [each.name for each in self.spec.sparse].index(feature)
        return self._teacher.groups(number, self.spec.sparse[number].rows)

    @functools.cached_property
    def _judge(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The teacher's probability (float64) and the label (int64) of every row of the split."""
        probabilities, labels = [], []
        for first in range(0, self.num_rows, _BLOCK_ROWS):
            rows = self.rows(first, min(first + _BLOCK_ROWS, self.num_rows))
            probabilities.append(self._teacher.probabilities(rows.dense, rows.sparse))
            labels.append(rows.labels)
        return torch.from_numpy(np.concatenate(probabilities)), torch.from_numpy(np.concatenate(labels)).long()

    def _features(self, row_keys: counter.Words) -> tuple[NDArray[np.float32], list[IdLists]]:
        """The dense columns (n, D) and the F bags of the n rows with these keys."""
        num_dense = len(self.spec.dense)
        # Counters within a row: 0 is the label, then come the dense columns; sparse feature f starts at 2^32 (f + 1).
        dense = normals(counter.words(row_keys[:, None], np.arange(1, 1 + -(-num_dense // 4))))
        sparse = []
        for index, (zipf, max_length) in enumerate(zip(self._zipf, self._max_lengths, strict=True)):
            first = (index + 1) << 32
            if max_length is None:
                offsets, uniforms = None, _uniforms(row_keys, first + 1)
            else:
                lengths = (_uniforms(row_keys, first) * (max_length + 1)).astype(np.int64)
                offsets = np.concatenate([[0], np.cumsum(lengths)])
                uniforms = np.empty(offsets[-1])
                fill_bags(row_keys, offsets, np.uint64(first + 1), uniforms)
            sparse.append(IdLists(zipf.ids(uniforms), offsets))
        return dense[:, :num_dense], sparse


def _row_keys(seed: int, split: str, first: int, last: int) -> counter.Words:
    """The keys of the random numbers of the rows ``first`` .. ``last - 1``: (last - first,)."""
    split_key = counter.words(counter.words(seed, 1), _SPLITS.index(split))
    return counter.words(split_key, np.arange(first, last))


def _uniforms(row_keys: counter.Words, number: int) -> NDArray[np.float64]:
    """The number in [0, 1) with the same counter in each row."""
    found = np.empty(len(row_keys))
    fill_uniforms(row_keys, np.uint64(number), found)
    return found
