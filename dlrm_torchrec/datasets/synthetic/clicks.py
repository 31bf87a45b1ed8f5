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
from dlrm_torchrec.datasets.numpy_columns import Columns
from dlrm_torchrec.datasets.random import counter
from dlrm_torchrec.datasets.spec_checks import require
from dlrm_torchrec.datasets.stream import Ranks
from dlrm_torchrec.datasets.synthetic.features import RowFeatures, uniforms
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
        zipf = [Zipf(f.rows, exponent, by_frequency=f.encoding == "vocab") for f in spec.sparse]
        self._features = RowFeatures(spec, zipf)
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
        labels = uniforms(row_keys, 0) < self._teacher.probabilities(dense, sparse)
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


def _row_keys(seed: int, split: str, first: int, last: int) -> counter.Words:
    """The keys of the random numbers of the rows ``first`` .. ``last - 1``: (last - first,)."""
    split_key = counter.words(counter.words(seed, 1), _SPLITS.index(split))
    return counter.words(split_key, np.arange(first, last))
