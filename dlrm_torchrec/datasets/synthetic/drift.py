"""Days of synthetic clicks whose ids come and go and whose teacher changes, so that each day's best AUC is known."""

from __future__ import annotations

from collections.abc import Generator
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from dlrm_torchrec.datasets.ahead import BATCHES_AHEAD, ahead
from dlrm_torchrec.datasets.batch import Batch
from dlrm_torchrec.datasets.block import joined
from dlrm_torchrec.datasets.jagged import to_batch
from dlrm_torchrec.datasets.numpy_columns import Columns, IdLists
from dlrm_torchrec.datasets.random import counter
from dlrm_torchrec.datasets.spec_checks import require
from dlrm_torchrec.datasets.stream import Ranks
from dlrm_torchrec.datasets.synthetic.features import RowFeatures, uniforms
from dlrm_torchrec.datasets.synthetic.kernels import add_bags
from dlrm_torchrec.datasets.synthetic.living_ids import LivingIds, turned
from dlrm_torchrec.datasets.synthetic.logit import Logit
from dlrm_torchrec.datasets.synthetic.specs import Drift
from dlrm_torchrec.datasets.synthetic.zipf import Zipf
from dlrm_torchrec.schema import DatasetSpec

Floats = NDArray[np.float64]

_BLOCK_ROWS = 8192  # rows that are made at a time when a whole day is read
_CALIBRATION_DAYS, _CALIBRATION_ROWS = range(0, 64, 4), 1024  # by which the logit is scaled once for all days
_DENSE_SLOWER = 4  # the weights of dense columns turn more slowly than the effects of ids, so many times
_DAYS_KEPT = 2  # whose ids and effects are in memory
_NONE = np.empty(0, np.int64)


class DriftingClicks:
    """All days of one synthetic world, each day's rows a pure function of (seed, day, number of the row).

    Dense columns are standard normal. The ids of a row are drawn from ``LivingIds``, with a Zipf distribution over
    their places. The label is drawn from a teacher: as in ``Teacher``, its logit is the sum of the weighted dense
    columns, the effects of all ids, and the slopes of all ids times other weights of the dense columns, but all of
    these turn slowly from day to day. It is scaled once for all days.
    """

    def __init__(
        self,
        spec: DatasetSpec,
        drift: Drift,
        *,
        seed: int = 0,
        exponent: float = 1.1,
        positive_rate: float = 0.25,
        logit_std: float = 1.75,
    ) -> None:
        require(spec, "synthetic days", id_weights=False)
        self.spec, self.drift, self._seed = spec, drift, seed
        *keys, dense_key = counter.words(counter.words(seed, 3), np.arange(len(spec.sparse) + 1))
        self.living = [LivingIds(feature, drift, key) for feature, key in zip(spec.sparse, keys, strict=True)]
        self._features = RowFeatures(spec, [Zipf(each.living, exponent, by_frequency=True) for each in self.living])
        self._dense_bits = counter.words(dense_key, np.arange(2 * len(spec.dense))).reshape(2, -1)
        self._bag_scale = [max(1.0, feature.pooling_factor) ** -0.5 for feature in spec.sparse]
        self._ids = lru_cache(_DAYS_KEPT)(lambda day: [each.ids(day) for each in self.living])
        self._effects = lru_cache(_DAYS_KEPT)(lambda day: [each.effects(day) for each in self.living])
        sample = [
            self.terms(day, *self._features(self._row_keys("calibration", day, 0, _CALIBRATION_ROWS)))
            for day in _CALIBRATION_DAYS
        ]
        self._logit = Logit.of(np.concatenate(sample, axis=1), positive_rate=positive_rate, logit_std=logit_std)

    def rows(self, day: int, first: int, last: int) -> tuple[Columns, Floats]:
        """The rows ``first`` .. ``last - 1`` of a day, and the teacher's P(label = 1) of each (n,)."""
        keys = self._row_keys("rows", day, first, last)
        dense, places = self._features(keys)
        chances = self._logit.probabilities(self.terms(day, dense, places))
        labels = (uniforms(keys, 0) < chances).astype(np.float32)
        sparse = [IdLists(ids[bags.values], bags.offsets) for ids, bags in zip(self._ids(day), places, strict=True)]
        return Columns(labels, dense, sparse), chances

    def terms(self, day: int, dense: NDArray[np.float32], places: list[IdLists]) -> Floats:
        """The three terms of the logit of rows of a day, unscaled: (3, n), from dense (n, D) and places of ids."""
        # Column by column, not by BLAS, because the sum of a row must not depend on its batch.
        from_dense, from_ids = np.zeros((2, 2, len(dense)))
        weights = turned(self._dense_bits, speed=self.drift.speed / _DENSE_SLOWER, day=day)
        for column, pair in zip(dense.T, weights.T, strict=True):
            from_dense += pair[:, None] * column
        for bags, effects, scale in zip(places, self._effects(day), self._bag_scale, strict=True):
            add_bags(bags.values, _NONE if bags.offsets is None else bags.offsets, effects * scale, from_ids)
        return np.stack([from_dense[0], from_ids[0], from_dense[1] * from_ids[1]])

    def _row_keys(self, part: str, day: int, first: int, last: int) -> counter.Words:
        part_key = counter.words(counter.words(self._seed, 4), ("rows", "calibration").index(part))
        return counter.words(counter.words(part_key, day), np.arange(first, last))


class DayStream:
    """Batches of the ``num_rows`` rows of one day, in the order of their numbers, ``epochs`` times."""

    def __init__(self, world: DriftingClicks, day: int, *, num_rows: int, ranks: Ranks, epochs: int = 1) -> None:
        if num_rows < 1 or day < 0:
            raise ValueError(f"a day must have rows, and a number from 0: got {num_rows} rows of day {day}; raise them")
        self.spec, self.day, self.num_rows = world.spec, day, num_rows
        self._world, self._ranks, self._epochs = world, ranks, epochs
        self._steps_per_epoch = -(-num_rows // ranks.global_batch_size)
        self.num_steps = epochs * self._steps_per_epoch

    def batches(self, start_step: int = 0) -> Generator[Batch, None, None]:
        """This rank's share of the global batches ``start_step`` .. ``num_steps - 1``.

        A thread makes them in advance. With a GPU, they lie in pinned memory.
        """
        return ahead(self._batches(start_step), BATCHES_AHEAD)

    def _batches(self, start_step: int) -> Generator[Batch, None, None]:
        pin_memory = torch.cuda.is_available()
        epoch, step = divmod(start_step, self._steps_per_epoch)
        for _ in range(epoch, self._epochs):
            for first, share in self._ranks.shares(self.num_rows, step):
                columns, _ = self._world.rows(self.day, first, first + share.num_rows)
                yield to_batch(self.spec, [joined(columns, np.int64)], share, pin_memory=pin_memory)
            step = 0

    def best_auc(self) -> float:
        """The AUC of the teacher's own probabilities on the rows of the day; no model can expect a better one."""
        from torchmetrics.functional.classification import binary_auroc  # half a second, which no step needs

        parts = []
        for first in range(0, self.num_rows, _BLOCK_ROWS):
            columns, chances = self._world.rows(self.day, first, min(first + _BLOCK_ROWS, self.num_rows))
            parts.append((torch.from_numpy(chances), torch.from_numpy(columns.labels).long()))
        probabilities, labels = (torch.cat(column) for column in zip(*parts, strict=True))
        return binary_auroc(probabilities, labels, validate_args=False).item()
