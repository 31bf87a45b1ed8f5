"""What every stream of batches offers, and how a global batch is cut among ranks (``Ranks.share``)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from dlrm_torchrec.datasets.batch import Batch
from dlrm_torchrec.schema import DatasetSpec


class Stream(Protocol):
    """Batches that depend on their step alone, so there is no state to save.

    The rows of global batch ``t`` over all ranks together are the same for every world size, so a run may stop and
    resume on more or fewer ranks.
    """

    @property
    def spec(self) -> DatasetSpec: ...

    @property
    def num_steps(self) -> int:
        """The number of global batches in the whole stream, over all epochs."""

    def batches(self, start_step: int = 0) -> Iterator[Batch]:
        """This rank's share of the global batches ``start_step`` .. ``num_steps - 1``."""


@dataclass(frozen=True)
class Share:
    """The rows of one global batch that one rank holds."""

    first: int  # index of the first row in the global batch
    num_rows: int
    padded_rows: int  # the same on every rank
    global_rows: int


@dataclass(frozen=True)
class Ranks:
    """A global batch cut into ``world_size`` contiguous pieces, of which this is piece ``rank``."""

    global_batch_size: int
    rank: int
    world_size: int

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise ValueError(
                f"rank must be in [0, world_size): got {self.rank} of {self.world_size}; pass the process group's"
            )
        if self.global_batch_size < 1 or self.global_batch_size % self.world_size:
            raise ValueError(
                f"global_batch_size must be a positive multiple of world_size {self.world_size}: "
                f"got {self.global_batch_size}; choose a multiple"
            )

    def share(self, global_rows: int) -> Share:
        """This rank's piece of a batch of ``global_rows`` rows, which can be fewer at the end of an epoch."""
        padded = -(-global_rows // self.world_size)
        first = min(self.rank * padded, global_rows)
        return Share(first, min(padded, global_rows - first), padded, global_rows)

    def shares(self, num_rows: int, start_step: int) -> Iterator[tuple[int, Share]]:
        """This rank's piece of every batch of ``num_rows`` rows in order, each with the number of its first row."""
        check_start_step(start_step, -(-num_rows // self.global_batch_size))
        for first in range(start_step * self.global_batch_size, num_rows, self.global_batch_size):
            share = self.share(min(self.global_batch_size, num_rows - first))
            yield first + share.first, share


def check_start_step(start_step: int, num_steps: int) -> None:
    """Raises ValueError unless ``start_step`` is a step of the stream, or its end."""
    if not 0 <= start_step <= num_steps:
        raise ValueError(
            f"start_step must be in [0, {num_steps}], the steps of this stream: got {start_step}; "
            "resume with the batch size, rows and epochs that the run began with"
        )
