"""Which samples each rank gets for each global batch, from any step on.

An epoch has the samples in the order of their times, or as a seeded permutation of them. It is cut into a fixed number
of batches, where the weights of the samples add up to equal parts: their tokens (events and candidates), or 1 each.
There are fewer and larger batches where the longest sample would not fit into one.
Then the samples of a batch are dealt to the ranks. Batches depend on the step alone, so a run may resume on any number
of ranks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from dlrm_torchrec.datasets.random.permutation import permutation
from dlrm_torchrec.datasets.sequences.log import Ints
from dlrm_torchrec.datasets.stream import Ranks


def weights_of(tokens: Ints, *, batch_by: str) -> Ints:
    """What samples with so many tokens weigh when epochs are cut."""
    return tokens if batch_by == "tokens" else np.ones_like(tokens)


def batches(weights: Ints, batch_size: int) -> int:
    """The number of batches of ``batch_size`` samples on average, each with room for the heaviest sample."""
    return min(-(-len(weights) // batch_size), int(weights.sum()) // int(weights.max()))


@dataclass(frozen=True, eq=False)
class SampleOrder:
    """Batches of ``ranks.global_batch_size`` samples on average, over ``epochs`` epochs."""

    tokens: Ints  # (N,) of each sample
    weights: Ints  # (N,), by which epochs are cut
    times: Ints  # (N,), the order of samples that are not shuffled
    ranks: Ranks
    epochs: int
    seed: int
    shuffle: bool

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ValueError(f"a stream must have epochs: got {self.epochs}; use at least 1")

    @property
    def steps_per_epoch(self) -> int:
        return batches(self.weights, self.ranks.global_batch_size)

    @property
    def num_steps(self) -> int:
        return self.epochs * self.steps_per_epoch

    def steps(self, start_step: int) -> Iterator[tuple[Ints, Ints]]:
        """The samples of each global batch from ``start_step`` on, and those of this rank."""
        for step in range(start_step, self.num_steps):
            epoch, batch = divmod(step, self.steps_per_epoch)
            order, cuts = self._epoch(epoch)
            samples = order[cuts[batch] : cuts[batch + 1]]
            yield samples, self.share(samples)

    def share(self, samples: Ints) -> Ints:
        """This rank's part of the samples of a batch, in their order.

        Ordered by tokens, the samples go to the ranks 0, 1, .. W - 1, W - 1, .. 1, 0, 0, 1 and so on, so that all ranks
        have equally many, but for one, and their sums of tokens differ by at most the longest sample.
        """
        size = self.ranks.world_size
        place = np.argsort(-self.tokens[samples], kind="stable")
        round_, number = np.divmod(np.arange(len(samples)), size)
        owner = np.where(round_ % 2 == 0, number, size - 1 - number)
        mine: Ints = samples[np.sort(place[owner == self.ranks.rank])]
        return mine

    def padded_rows(self, samples: Ints) -> int:
        """The number of samples that every rank's share of a batch is padded to."""
        return -(-len(samples) // self.ranks.world_size)

    @lru_cache(1)  # noqa: B019  # an order lives as long as its stream
    def _epoch(self, epoch: int) -> tuple[Ints, Ints]:
        """The samples of an epoch in order, and where its batches are cut."""
        order = (
            permutation(len(self.weights), self.seed, epoch) if self.shuffle else np.argsort(self.times, kind="stable")
        )
        starts = np.cumsum(self.weights[order]) - self.weights[order]
        total, count = int(self.weights.sum()), self.steps_per_epoch
        cuts = np.searchsorted(starts, np.arange(count + 1) * (total / count))
        cuts[-1] = len(order)
        return order, cuts
