"""Configs of managed tables: any of so many ids may get one of the rows, and lose it again."""

from __future__ import annotations

from dataclasses import dataclass

from torchrec.modules.embedding_configs import EmbeddingBagConfig

from dlrm_torchrec.embeddings.config import Policy
from dlrm_torchrec.embeddings.managed.buckets import num_buckets, whole_buckets
from dlrm_torchrec.embeddings.managed.places import BYTES_PER_ROW

LEAST_PLACES = 256  # for ids without a row, in a bucket of as many rows or more


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Which ids get rows, and when they lose them."""

    policy: Policy = "distance"
    admit_after: int = 1  # sightings within one interval that an id needs
    update_every: int = 20  # steps of an interval, after which rows are given to ids
    max_age: int = 0  # steps without a sighting after which an id loses its row; 0 means never


@dataclass(kw_only=True)
class ManagedEmbeddingBagConfig(EmbeddingBagConfig):
    """A table of ``num_embeddings`` rows for any of ``num_ids`` ids. The last row of each bucket is shared.

    Ids without a row read the shared row of their bucket. Raises ValueError when rows are too few, or no whole buckets.
    """

    num_ids: int
    rules: Rules

    def __post_init__(self) -> None:
        super().__post_init__()
        self.feature_names: list[str] = self.feature_names or [self.name]  # as TorchRec does
        rows: int = self.num_embeddings
        if rows < 2 or rows != whole_buckets(rows):
            raise ValueError(
                f"rows of managed table {self.name!r} must be at least 2 and a multiple of its {num_buckets(rows)} "
                f"buckets: got {rows}; take {max(2, whole_buckets(rows))}"
            )

    @property
    def buckets(self) -> int:
        return num_buckets(self.num_embeddings)

    @property
    def places(self) -> int:
        """Ids without a row that a bucket counts within an interval."""
        rows: int = self.num_embeddings // self.buckets
        return max(rows // 4, min(rows, LEAST_PLACES))

    def map_bytes(self, device: str = "cpu") -> int:
        """Bytes of the map of ids to rows on a device, cpu or cuda.

        A row has an id, the step at which it was seen, a trace of an evicted id, where it is found, and for most
        policies a count of sightings. A bucket has a waiting room, a clock and five tallies.
        """
        of_row = 8 + 4 + 1 + BYTES_PER_ROW[device] + (4 if self.rules.policy != "lru" else 0)
        return int(self.num_embeddings) * of_row + self.buckets * (16 * self.places + 8 * 6)
