"""A drop-in replacement for TorchRec's ``EmbeddingBagCollection`` in which any table may be managed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from dlrm_torchrec.embeddings.compositional.collection import CompositionalEmbeddingBagCollection
from dlrm_torchrec.embeddings.compositional.sources import Source
from dlrm_torchrec.embeddings.compositional.stacked_rows import InitialRows
from dlrm_torchrec.embeddings.initialize import draw_rows, table_seed
from dlrm_torchrec.embeddings.managed.buckets import dealt
from dlrm_torchrec.embeddings.managed.id_map import Admitted, IdMap
from dlrm_torchrec.embeddings.managed.table_configs import ManagedEmbeddingBagConfig


class ManagedEmbeddingBagCollection(CompositionalEmbeddingBagCollection):
    """Plain, compositional and managed tables; the latter give rows to ids as training meets them.

    In training mode, a forward counts the ids, and now and then lets some of them have rows. Such a row gets its first
    vector again; what an optimizer remembers of it is not touched (a sharded collection does so). In evaluation mode,
    nothing changes. Ids without a row read one that they share with others. Raises ValueError for ids outside of the
    range of their table, and at first if a feature of a managed table has another table, too.
    """

    def __init__(
        self,
        tables: Sequence[EmbeddingBagConfig],
        is_weighted: bool = False,  # noqa: FBT001, FBT002  # as EmbeddingBagCollection, which this stands in for
        device: torch.device | None = None,
    ) -> None:
        _check_features(tables)
        super().__init__(tables, is_weighted, device)
        self.maps = nn.ModuleDict(
            {name: IdMap(config, device) for name, config in managed_configs(tables).items()},
        )

    def forward(self, features: KeyedJaggedTensor) -> KeyedTensor:
        return super().forward(self._rows(features))

    def _rows(self, features: KeyedJaggedTensor) -> KeyedJaggedTensor:
        """The features with rows in place of the ids of managed tables."""
        parts = list(features.values().long().split(features.length_per_key()))
        places = {name: number for number, name in enumerate(features.keys())}
        for table, config in managed_configs(self.physical_configs()).items():
            numbers = [places[name] for name in config.feature_names]
            for number, source in zip(numbers, sources_of(config), strict=True):
                source.check(parts[number])
            ids_to_rows = self.maps[table]
            assert isinstance(ids_to_rows, IdMap)
            rows, admitted = map_ids(ids_to_rows, torch.cat([parts[number] for number in numbers]))
            if admitted is not None:
                weight = self.embedding_bags[table].weight.data
                weight[admitted.rows] = first_vectors(config, admitted, weight)
            for number, own in zip(numbers, rows.split([len(parts[number]) for number in numbers]), strict=True):
                parts[number] = own
        return with_values(features, torch.cat(parts))


def managed_configs(tables: Sequence[EmbeddingBagConfig]) -> dict[str, ManagedEmbeddingBagConfig]:
    """The managed ones among tables, by name."""
    return {config.name: config for config in tables if isinstance(config, ManagedEmbeddingBagConfig)}


def _check_features(tables: Sequence[EmbeddingBagConfig]) -> None:
    """Raises ValueError when a feature of a managed table also has another table, which would get rows for ids."""
    counts = Counter(feature for config in tables for feature in config.feature_names)
    for config in managed_configs(tables).values():
        for feature in config.feature_names:
            if counts[feature] > 1:
                raise ValueError(
                    f"feature {feature!r} of managed table {config.name!r} must have no other table: got "
                    f"{counts[feature]} tables; give it another name there"
                )


def map_ids(ids_to_rows: IdMap, ids: torch.Tensor) -> tuple[torch.Tensor, Admitted | None]:
    """The rows (n,) of ids (n,), and who got a row if the map is in training mode."""
    if ids_to_rows.training:
        return ids_to_rows.train_step(ids)
    return ids_to_rows.find(ids)[0], None


def with_values(features: KeyedJaggedTensor, values: torch.Tensor) -> KeyedJaggedTensor:
    """The same bags with other ``values``."""
    return KeyedJaggedTensor(
        features.keys(), values, features.weights_or_none(), features.lengths(), stride=features.stride()
    )


def first_vectors(config: ManagedEmbeddingBagConfig, admitted: Admitted, like: torch.Tensor) -> torch.Tensor:
    """The vectors (n, dim), of the type of ``like``, with which rows begin; they depend on table and id alone."""
    vectors = like.new_empty(len(admitted.ids), config.embedding_dim)
    part = InitialRows.plain(config.num_embeddings)
    draw_rows(vectors, dealt(admitted.ids) >> 20, part, salt=table_seed("admitted", config.name))
    return vectors


def sources_of(config: ManagedEmbeddingBagConfig) -> list[Source]:
    """The features of a table, with the ids that they may have."""
    return [Source(config.num_ids, feature, config.name) for feature in config.feature_names]
