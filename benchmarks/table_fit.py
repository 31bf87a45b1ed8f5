"""Fitted tables against the naive rule, "compress every table above a threshold equally", with the same bytes.

    python benchmarks/table_fit.py

The tables have the rows and bags of Criteo as published. Each table has its own Zipf law, with its own exponent, for
how often ids are looked up. The loss of both is counted, not estimated: the partitions of training map ids to rows, and
every lookup of a row counts with the share of the row's updates that come from other ids.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from torchrec.optim import RowWiseAdagrad

from dlrm_torchrec.datasets.criteo import criteo_kaggle_spec
from dlrm_torchrec.datasets.profile import summary
from dlrm_torchrec.embeddings.config import TablesConfig
from dlrm_torchrec.embeddings.tables import partition_of
from dlrm_torchrec.sharding.planner.fit import Choice, best, choices

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Config:
    lookups: int = 20_000_000  # lookups of each table
    seed: int = 0


def counted(counts: Counts, choice: Choice) -> float:
    """The share of lookups that read updates of other ids, with the partition that training uses."""
    if choice.config.kind == "plain":
        return 0.0
    partition = partition_of(choice.config, len(counts))
    largest = int(np.argmax(partition.classes))
    rows = partition.of(torch.arange(len(counts)))[largest].numpy()
    per_row = np.bincount(rows, weights=counts)
    return float((counts * (1 - counts / np.maximum(per_row[rows], 1))).sum() / counts.sum())


def main(config: Config) -> None:
    random, spec = np.random.default_rng(config.seed), criteo_kaggle_spec()
    counts: dict[str, Counts] = {}
    ways: dict[str, list[Choice]] = {}
    for table in spec.tables(dim=16):
        shares = np.arange(1, table.rows + 1) ** -random.uniform(0.6, 1.3)
        drawn = random.poisson(config.lookups * shares / shares.sum())
        counts[table.name] = random.permutation(drawn)  # in random order, like hashed ids
        access = summary(drawn, config.lookups, reuse=0.0)
        ways[table.name] = choices(table, TablesConfig(), RowWiseAdagrad, pooling_factor=1.0, access=access)

    def lost(chosen: Mapping[str, Choice]) -> float:
        return sum(counted(counts[name], choice) for name, choice in chosen.items())

    print(f"{'ids per row':>11}  {'bytes':>13}  {'equally':>8}  {'fitted':>8}  {'estimated':>9}  ratio")
    for number in (1, 3, 5, 9, 13):
        equal = {name: each[min(number, len(each) - 1)] for name, each in ways.items()}
        budget = sum(choice.bytes for choice in equal.values())
        fitted = best(ways, budget)
        assert fitted is not None
        collisions = max(choice.config.collisions for choice in equal.values() if choice.config.kind != "plain")
        before, after = lost(equal), lost(fitted)
        estimate = sum(choice.loss for choice in fitted.values())
        print(f"{collisions:>11}  {budget:>13,}  {before:>8.4f}  {after:>8.4f}  {estimate:>9.4f}  {after / before:.2f}")


if __name__ == "__main__":
    main(tyro.cli(Config))
