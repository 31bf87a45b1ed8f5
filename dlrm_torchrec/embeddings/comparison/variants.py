"""What a comparison of ways to store tables consists of: its variants, and their finished runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import torch
from iopath.common.file_io import g_pathmgr

from dlrm_torchrec.embeddings.comparison.sweep import Sweep
from dlrm_torchrec.embeddings.config import TablesConfig
from dlrm_torchrec.embeddings.tables import build_tables
from dlrm_torchrec.schema import Table


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way to store the tables, at one size."""

    way: str  # for people; variants of one way differ in size
    tables: TablesConfig
    parameters: int  # of all tables, with the projections of mixed dims
    bytes: int

    @property
    def size(self) -> str:
        """What decides the size, for people."""
        if self.tables.kind == "plain":
            return ""
        if self.tables.kind == "mixed_dimension":
            return f"alpha {self.tables.alpha}"
        return f"{self.tables.collisions} collisions, threshold {self.tables.threshold}"

    @property
    def name(self) -> str:
        """A name for a folder."""
        return f"{self.way} {self.size}".strip().replace(",", "").replace(" ", "-")


def variants(sweep: Sweep, ways: Mapping[str, TablesConfig], tables: Sequence[Table]) -> list[Variant]:
    """The ways that ``sweep`` chooses at all sizes that they have, counted on tables that hold no memory.

    Raises ValueError where a chosen way is not among ``ways``.
    """
    sweep.check(ways)
    counted = []
    for way in sweep.ways or ways:
        for config in sweep.sizes(ways[way]):
            weights = list(build_tables(tables, config, torch.device("meta")).parameters())
            parameters = sum(weight.numel() for weight in weights)
            num_bytes = sum(weight.numel() * weight.element_size() for weight in weights)
            counted.append(Variant(way=way, tables=config, parameters=parameters, bytes=num_bytes))
    return counted


class Runs:
    """Finished runs of each variant with each seed: a line of ``results.jsonl`` each, appended when a run ends.

    A line is found again by a key of all that decides its outcome: ``settings``, which is everything but variant and
    seed, and these two. So runs of other settings may lie in the same file and are never mixed in. Every rank reads
    the file when it begins; only the one that is to ``write`` adds to it.
    """

    def __init__(self, folder: str, settings: dict[str, Any], seeds: Sequence[int], *, write: bool) -> None:
        if not seeds:
            raise ValueError("seeds must name at least one: got none; three show a spread")
        self.seeds = seeds
        self._folder, self._path, self._settings, self._write = folder, f"{folder}/results.jsonl", settings, write
        self._metrics: dict[str, dict[str, float]] = {}
        self._torn = False  # a run that is killed while it writes leaves half a line
        if g_pathmgr.exists(self._path):
            with g_pathmgr.open(self._path, "r") as stream:
                for line in stream:
                    self._torn = not line.endswith("\n")
                    with suppress(json.JSONDecodeError):
                        run = json.loads(line)
                        self._metrics[run["key"]] = run["metrics"]

    def finished(self, variant: Variant, seed: int) -> bool:
        return self._key(variant, seed) in self._metrics

    def add(self, variant: Variant, seed: int, metrics: dict[str, float]) -> None:
        """Keep the metrics of a finished run."""
        key = self._key(variant, seed)
        self._metrics[key] = metrics
        if self._write:
            line = json.dumps({"variant": variant.name, "seed": seed, "key": key, "metrics": metrics})
            g_pathmgr.mkdirs(self._folder)
            with g_pathmgr.open(self._path, "a") as stream:
                stream.write("\n" * self._torn + f"{line}\n")
            self._torn = False

    def values(self, variant: Variant, metric: str) -> list[float]:
        """The metric of the variant's run with each seed, all of which must have finished."""
        return [self._metrics[self._key(variant, seed)][metric] for seed in self.seeds]

    def _key(self, variant: Variant, seed: int) -> str:
        text = json.dumps([self._settings, asdict(variant.tables), seed], sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
