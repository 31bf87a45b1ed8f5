"""Which ways to store tables are compared, at which sizes. No torch, so that ``--help`` is quick."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from dlrm_torchrec.embeddings.config import TablesConfig


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Which ways to store tables are compared, at which sizes."""

    ways: tuple[str, ...] = ()
    """Names of the ways to compare; empty means all."""
    collisions: tuple[int, ...] = (4,)
    """Ids that share a row of the largest partition, a size for each; 0 means the fewest rows in all."""
    threshold: int = 1
    """Tables of at most this many rows stay plain."""
    thresholds: tuple[int, ...] = ()
    """Further thresholds to compare, each with 4 collisions; empty means none."""
    alphas: tuple[float, ...] = (0.3,)
    """Powers of the rows by which the dims of mixed_dimension tables fall."""
    ratios: tuple[float, ...] = ()
    """Factors by which all tables together shrink; each way gets at most these bytes; overrides the other sizes."""
    assignments: tuple[str, ...] = ()
    """Folders written by recipes/cluster_tables.py, whose clusters are compared, too; empty means none."""

    def check(self, ways: Iterable[str]) -> None:
        """ValueError where a chosen way is not among ``ways``."""
        unknown = [way for way in self.ways if way not in ways]
        if unknown:
            raise ValueError(
                f"ways must be among {', '.join(ways)}: got {', '.join(unknown)}; name some, or none for all"
            )

    def sizes(self, way: TablesConfig) -> Iterator[TablesConfig]:
        """``way`` at each size that it has."""
        if way.kind == "plain":
            yield way
        elif way.kind == "mixed_dimension":
            for alpha in self.alphas:
                yield replace(way, alpha=alpha, threshold=self.threshold)
        else:
            collisions = [count for count in self.collisions if count or way.kind != "hash"]  # hash with 0: one row
            sizes = [(count, self.threshold) for count in collisions]
            for count, threshold in [*sizes, *((4, threshold) for threshold in self.thresholds)]:
                yield replace(way, collisions=count, threshold=threshold)
