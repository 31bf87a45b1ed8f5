"""The parts of a comparison of ways to store tables: its variants and their finished runs."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from iopath.common.file_io import g_pathmgr

from dlrm_torchrec.embeddings.comparison.sweep import Sweep
from dlrm_torchrec.embeddings.config import TablesConfig
from dlrm_torchrec.embeddings.tables import build_tables, bytes_of_ids, physical_configs
from dlrm_torchrec.schema import Table


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way to store the tables, at one size."""

    way: str  # the name that people see; variants of one way differ in size
    tables: TablesConfig
    parameters: int  # of all tables, including the projections of mixed dims
    bytes: int
    ratio: float = 0.0  # at most the bytes of plain tables over this; 0 for a size that was set otherwise

    @property
    def size(self) -> str:
        """The settings that decide the size, as text for people."""
        if self.tables.kind == "plain":
            return ""
        if self.tables.kind == "mixed_dimension":
            return f"budget {self.tables.budget}" if self.tables.budget else f"alpha {self.tables.alpha}"
        if self.tables.max_rows:
            return f"{self.tables.threshold} rows"
        if self.tables.assignments:
            return os.path.basename(self.tables.assignments.rstrip("/"))
        return f"{self.tables.collisions} collisions, threshold {self.tables.threshold}"

    @property
    def name(self) -> str:
        """A name for a folder."""
        return f"{self.way} {self.size}".strip().replace(",", "").replace(" ", "-")


def variants(sweep: Sweep, ways: Mapping[str, TablesConfig], tables: Sequence[Table]) -> list[Variant]:
    """The ways that ``sweep`` chooses, in all their sizes, counted on tables that hold no memory, and its clusters.

    Raises ValueError when a chosen way is not among ``ways``.
    """
    sweep.check(ways)
    found = []
    for way in sweep.ways or ways:
        sizes = ((0.0, config) for config in sweep.sizes(ways[way]))
        for ratio, config in _at_ratios(tables, ways[way], sweep.ratios) if sweep.ratios else sizes:
            parameters, size = _parameters(tables, config), stored_bytes(tables, config)
            found.append(Variant(way=way, tables=config, parameters=parameters, bytes=size, ratio=ratio))
    for folder in sweep.assignments:
        config = TablesConfig(kind="clusters", assignments=folder)
        parameters, size = _parameters(tables, config), stored_bytes(tables, config)
        reached = stored_bytes(tables, TablesConfig()) / size
        ratio = max((ratio for ratio in sweep.ratios if ratio <= reached), default=0.0)
        found.append(Variant(way="clusters", tables=config, parameters=parameters, bytes=size, ratio=ratio))
    return found


def stored_bytes(tables: Sequence[Table], config: TablesConfig) -> int:
    """Bytes of the weights of all tables, of what they keep of ids, and of the projections of mixed dims."""
    built = build_tables(tables, config, torch.device("meta"))
    kept = sum(bytes_of_ids(config) for config in physical_configs(built))
    return int(kept + sum(weight.numel() * weight.element_size() for weight in built.parameters()))


def _parameters(tables: Sequence[Table], config: TablesConfig) -> int:
    return sum(weight.numel() for weight in build_tables(tables, config, torch.device("meta")).parameters())


def _at_ratios(
    tables: Sequence[Table], way: TablesConfig, ratios: Sequence[float]
) -> Iterator[tuple[float, TablesConfig]]:
    """Each ratio, and ``way`` with the most rows per table whose bytes are at most those of plain tables over it.

    The limit is the same for all tables, so that small tables stay plain; a ratio that a way cannot reach is left out.
    """
    plain = stored_bytes(tables, TablesConfig(data_type=way.data_type))
    if way.kind == "plain":
        yield 1.0, way
        return
    for ratio in ratios:
        low, high, found = 1, _largest(way, tables), None
        while low <= high:
            middle = (low + high) // 2
            try:
                tried = _limited(way, middle)
                fits = stored_bytes(tables, tried) <= plain / ratio
            except ValueError:  # the way has no tables of so few rows
                low = middle + 1
                continue
            if fits:
                found, low = tried, middle + 1
            else:
                high = middle - 1
        if found is not None:
            yield ratio, found


def _largest(way: TablesConfig, tables: Sequence[Table]) -> int:
    """The limit that leaves all tables plain."""
    if way.kind == "mixed_dimension":
        return sum(table.rows * table.dim for table in tables)
    return max(table.rows for table in tables)


def _limited(way: TablesConfig, limit: int) -> TablesConfig:
    """``way`` with at most ``limit`` rows of the full dim per table, or with so many elements in all mixed dims."""
    if way.kind == "mixed_dimension":
        return replace(way, budget=limit, threshold=0)
    k = 2 if way.kind == "quotient_remainder" else way.partitions
    parts = k if way.combination == "concat" and way.kind != "hash" else 1  # rows of concat are 1 / k as wide
    return replace(way, max_rows=limit * parts, threshold=limit)


class Runs:
    """The finished runs of each variant and seed; each run appends one line to ``results.jsonl`` when it ends.

    The key of a line covers everything that decides the outcome: the variant, the seed, and ``settings``, which holds
    all the rest. Runs with other settings may therefore share the file and are never mixed up. Every rank reads the
    file at the start; only the rank with ``write`` adds lines.
    """

    def __init__(self, folder: str, settings: dict[str, Any], seeds: Sequence[int], *, write: bool) -> None:
        if not seeds:
            raise ValueError("seeds must hold at least one seed: got none; give three to see a spread")
        self.seeds = seeds
        self._folder, self._path, self._settings, self._write = folder, f"{folder}/results.jsonl", settings, write
        self._metrics: dict[str, dict[str, float]] = {}
        self._torn = False  # whether the last line is incomplete because a run was killed while it wrote
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
        """The metric of the variant for each seed; all these runs must have finished."""
        return [self._metrics[self._key(variant, seed)][metric] for seed in self.seeds]

    def _key(self, variant: Variant, seed: int) -> str:
        text = json.dumps([self._settings, variant.tables.identity, seed], sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
