"""A window: rows that belong together in time, which yesterday's model is judged by and which are then trained on."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlrm_torchrec.datasets.open import SYNTHETIC, held_out_batch
from dlrm_torchrec.datasets.prepared.manifest import Manifest
from dlrm_torchrec.datasets.prepared.parquet import ParquetStream, Selection
from dlrm_torchrec.datasets.stream import Ranks, Stream


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How the rows of a window are read; ``lanes`` is explained in ``prepared.order``."""

    shuffle: bool
    epochs: int
    seed: int
    lanes: int


Open = Callable[[Ranks, Reading], Stream]


@dataclass(frozen=True, kw_only=True)
class Window:
    """The rows of one window, and what tells them from those of any other."""

    name: str
    day: float  # when it begins, in days; only differences mean something
    rows: int
    digest: str  # equal only for the same rows
    open: Open
    folder: str = SYNTHETIC  # the prepared folder with its vocabularies
    until: str = ""  # when it ends, in ISO 8601; empty means that nobody knows
    files: tuple[tuple[str, str | None], ...] = ()  # place and SHA-256 of each file that holds some of its rows
    # by table, after the window of this name: the rows whose ids mean other values
    fresh_after: Callable[[str], Mapping[str, NDArray[np.int64]]] = lambda _: {}
    best_auc: Callable[[], float] | None = None  # which no model can expect to exceed; None where nobody knows it

    def fresh_rows(self, begun: Sequence[Mapping[str, Any]]) -> Mapping[str, NDArray[np.int64]]:
        """By table, the rows of ids that mean other values than after the last window of ``begun``; none at first."""
        return self.fresh_after(begun[-1]["name"]) if begun else {}

    def steps(self, batch_size: int, *, epochs: int) -> int:
        """The global batches of so many epochs."""
        return epochs * -(-self.rows // batch_size)

    def train(self, ranks: Ranks, *, epochs: int, seed: int, lanes: int) -> Stream:
        """The rows in a seeded order, ``epochs`` times."""
        return self.open(ranks, Reading(shuffle=True, epochs=epochs, seed=seed, lanes=lanes))

    def evaluation(self, ranks: Ranks) -> Stream:
        """The same rows once, in the order of the files, in batches that are large enough to be quick."""
        large = replace(ranks, global_batch_size=held_out_batch(ranks))
        return self.open(large, Reading(shuffle=False, epochs=1, seed=0, lanes=ranks.world_size))


def open_prepared(folder: str, ranks: Ranks, reading: Reading, *, selection: Selection | None = None) -> Stream:
    """The training rows of a prepared folder, or a ``selection`` of them."""
    return ParquetStream(
        folder,
        "train",
        global_batch_size=ranks.global_batch_size,
        rank=ranks.rank,
        world_size=ranks.world_size,
        seed=reading.seed,
        shuffle=reading.shuffle,
        epochs=reading.epochs,
        lanes=reading.lanes,
        selection=selection,
    )


def digest_of(content: Any) -> str:
    """16 hexadecimal digits that differ for different JSON."""
    return sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def check_only_training_rows(manifest: Manifest, folder: str) -> None:
    """Raises ValueError unless all labelled rows of a prepared folder are in its split ``train``."""
    rows = {name: split.rows for name, split in manifest.splits.items() if name != "unlabelled"}
    if not rows.get("train") or sum(rows.values()) > rows["train"]:
        raise ValueError(
            f"rows of {folder} must all be in split 'train', because each window is evaluated before it is trained on: "
            f"got {rows}; prepare it with --val_share 0"
        )
