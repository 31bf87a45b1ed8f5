"""Row-wise sharding of managed tables: the rank with an id's bucket gets the id."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torchrec.distributed.embedding_types import ShardedEmbeddingTable
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrm_torchrec.embeddings.compositional.sources import Source
from dlrm_torchrec.embeddings.managed.buckets import dealt
from dlrm_torchrec.embeddings.managed.collection import sources_of, with_values
from dlrm_torchrec.embeddings.managed.table_configs import ManagedEmbeddingBagConfig
from dlrm_torchrec.schema import MANAGED_IDS
from dlrm_torchrec.sharding.modules.composed_shardings import RowWise
from dlrm_torchrec.sharding.modules.rows_of_features import sources

Managed = Mapping[str, ManagedEmbeddingBagConfig]  # by the name of the table


class ManagedRowWise(RowWise):
    """Sends ids of managed tables as numbers in [0, 2**63), which TorchRec cuts into a block for each rank.

    A rank gets the numbers of its buckets, counted from the first.
    """

    def __init__(self, managed: Managed, *args: Any, **options: Any) -> None:
        self._managed = managed
        super().__init__(*args, **options)

    def create_input_dist(self, device: torch.device | None = None) -> torch.nn.Module:
        input_dist: torch.nn.Module = super().create_input_dist(device)
        own: list[tuple[int, Source]] = []
        place = 0
        for table in self._tables():
            if table.name in self._managed:
                own += [(place + number, source) for number, source in enumerate(sources_of(self._managed[table.name]))]
            place += len(sources(table, self._stacked))
        # before compositional tables number the rows that they send
        input_dist.register_forward_pre_hook(partial(_dealt_features, own), prepend=True)
        return input_dist

    def num_values(self, table: ShardedEmbeddingTable) -> int:
        return MANAGED_IDS if table.name in self._managed else super().num_values(table)


def _dealt_features(
    own: list[tuple[int, Source]], _module: torch.nn.Module, features: tuple[KeyedJaggedTensor]
) -> tuple[KeyedJaggedTensor]:
    """The features, with numbers for the ids of those at the places in ``own``."""
    (ids,) = features
    parts = list(ids.values().long().split(ids.length_per_key()))
    for place, source in own:
        source.check(parts[place])
        parts[place] = dealt(parts[place])
    return (with_values(ids, torch.cat(parts)),)
