"""Batches of sequences, which are a function of their step."""

from __future__ import annotations

from collections.abc import Generator

import numpy as np
import torch

from dlrm_torchrec.datasets.ahead import BATCHES_AHEAD, ahead
from dlrm_torchrec.datasets.sequences.batch import SequenceBatch
from dlrm_torchrec.datasets.sequences.collate import Collation
from dlrm_torchrec.datasets.sequences.order import SampleOrder, weights_of
from dlrm_torchrec.datasets.sequences.samples import Samples
from dlrm_torchrec.datasets.stream import Ranks, check_start_step
from dlrm_torchrec.schema import DatasetSpec


class SequenceStream:
    """Batches of the samples of one split, every sample once per epoch.

    The samples of a global batch are the same for every world size, and are dealt to ranks so that these have equally
    many samples and nearly equally many tokens. Batches have equally many tokens, or samples, by ``batch_by``.
    """

    def __init__(
        self,
        spec: DatasetSpec,
        samples: Samples,
        ranks: Ranks,
        *,
        batch_by: str,
        shuffle: bool,
        epochs: int = 1,
        seed: int = 0,
    ) -> None:
        self.spec, self.samples = spec, samples
        tokens = samples.tokens()
        self.rows = np.diff(samples.bounds)  # of each sample: its candidates
        self._order = SampleOrder(
            tokens=tokens,
            weights=weights_of(tokens, batch_by=batch_by),
            times=samples.log.times[samples.moments],
            ranks=ranks,
            epochs=epochs,
            seed=seed,
            shuffle=shuffle,
        )
        self.num_steps = self._order.num_steps

    def batches(self, start_step: int = 0) -> Generator[SequenceBatch, None, None]:
        """This rank's share of the global batches ``start_step`` .. ``num_steps - 1``.

        A thread makes them in advance. With a GPU, they lie in pinned memory.
        """
        check_start_step(start_step, self.num_steps)
        return ahead(self._batches(start_step), BATCHES_AHEAD)

    def _batches(self, start_step: int) -> Generator[SequenceBatch, None, None]:
        collation = Collation(self.spec, self.samples, pin_memory=torch.cuda.is_available())
        for step, (together, mine) in enumerate(self._order.steps(start_step), start_step):
            batch = collation.batch(
                mine, padded_rows=self._order.padded_rows(together), global_rows=int(self.rows[together].sum())
            )
            yield self.completed(batch, step)

    def completed(self, batch: SequenceBatch, step: int) -> SequenceBatch:  # noqa: ARG002  # for other streams
        """The batch of a step with all that this stream adds to its samples."""
        return batch
