"""A drop-in replacement for TorchRec's ``EmbeddingBagCollection`` in which any table may be compositional."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional
from torchrec.modules.embedding_configs import EmbeddingBagConfig, PoolingType
from torchrec.modules.embedding_modules import (
    EmbeddingBagCollection,
    get_embedding_names_by_table,
    process_pooled_embeddings,
    reorder_inverse_indices,
)
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from dlrm_torchrec.embeddings.compositional.bags import Bags
from dlrm_torchrec.embeddings.compositional.pooling import pool_ids
from dlrm_torchrec.embeddings.compositional.table_configs import (
    CompositionalEmbeddingBagConfig,
    StackedEmbeddingBagConfig,
)


class CompositionalEmbeddingBagCollection(EmbeddingBagCollection):
    """Plain and compositional tables; each is summed or averaged over the bags of its features.

    The collection takes the ``KeyedJaggedTensor`` that an ``EmbeddingBagCollection`` with the same names, rows and dims
    takes, and returns the same ``KeyedTensor`` (keys, order, dims). The only exception is feature generation, which
    returns k keys ``feature#0`` ... for a feature. The partitions of a table are stacked in
    ``embedding_bags.<table>.weight``.
    """

    def __init__(
        self,
        tables: Sequence[EmbeddingBagConfig],
        is_weighted: bool = False,  # noqa: FBT001, FBT002  # as EmbeddingBagCollection, which this stands in for
        device: torch.device | None = None,
    ) -> None:
        physical, model = [], []
        for config in tables:
            if isinstance(config, CompositionalEmbeddingBagConfig):
                physical.append(config.stacked())
                model.append(config.model_config())
            elif is_weighted and config.pooling is PoolingType.MEAN:
                raise ValueError(
                    f"pooling of plain table {config.name!r} must be sum with per-sample weights, as in PyTorch: "
                    "got mean; choose sum"
                )
            else:
                physical.append(config)
                model.append(config)
        _check_names(tables, physical)
        super().__init__(physical, is_weighted, device)
        self._model_configs = model
        self._keys = [key for keys in get_embedding_names_by_table(model) for key in keys]

    def embedding_bag_configs(self) -> list[EmbeddingBagConfig]:
        """The tables as a model sees them."""
        return self._model_configs

    def physical_configs(self) -> list[EmbeddingBagConfig]:
        """The tables as they are stored: a compositional table is a ``StackedEmbeddingBagConfig``."""
        configs: list[EmbeddingBagConfig] = super().embedding_bag_configs()
        return configs

    def physical(self) -> EmbeddingBagCollection:
        """The stored tables as a plain collection that shares the parameters of this one."""
        plain = _StoredTables(self.physical_configs(), self.is_weighted(), torch.device("meta"))
        plain.embedding_bags = self.embedding_bags
        plain.device = self.device  # TorchRec copies the weights of a collection that is on a GPU
        return plain

    def model_keys(self) -> dict[str, str]:
        """The key that a model sees for each physical feature; with concat, several features share one key."""
        key_of: dict[str, str] = {}
        stored = get_embedding_names_by_table(self.physical_configs())
        for physical, model in zip(stored, get_embedding_names_by_table(self._model_configs), strict=True):
            pieces = len(physical) // len(model)
            key_of |= {name: model[number // pieces] for number, name in enumerate(physical)}
        return key_of

    def forward(self, features: KeyedJaggedTensor) -> KeyedTensor:
        jagged = features.to_dict()
        names: list[str] = []
        pooled: list[torch.Tensor] = []
        for config in self.physical_configs():
            bag = self.embedding_bags[config.name]
            stacked = isinstance(config, StackedEmbeddingBagConfig)
            for feature in config.logical.feature_names if stacked else config.feature_names:
                ids = jagged[feature]
                weights = ids.weights() if self.is_weighted() else None
                if stacked:
                    bags = Bags(ids.values().long(), ids.lengths().long(), weights, [len(ids.values())])
                    vectors = pool_ids(config, bags, LookUpIn(bag.weight), feature)
                else:
                    vectors = bag(ids.values(), ids.offsets(), per_sample_weights=weights)
                names.append(feature)
                pooled.append(vectors.float())
        dims = [config.embedding_dim for config in self._model_configs for _ in config.feature_names]
        inverse = reorder_inverse_indices(features.inverse_indices_or_none(), names)
        return KeyedTensor(keys=self._keys, length_per_key=dims, values=process_pooled_embeddings(pooled, inverse))


class _StoredTables(EmbeddingBagCollection):
    """A plain collection created without memory of its own, so that its device is set when it gets its tables."""

    device = torch.device("meta")


def _check_names(tables: Sequence[EmbeddingBagConfig], physical: Sequence[EmbeddingBagConfig]) -> None:
    """Raises ValueError when a feature has the name of another feature's output."""
    outputs = {
        name for config in physical if isinstance(config, StackedEmbeddingBagConfig) for name in config.feature_names
    }
    for config in tables:
        for feature in config.feature_names:
            if feature in outputs:
                raise ValueError(
                    f"features must not have the name of an output of a compositional table: got {feature!r} in table "
                    f"{config.name!r}; rename it"
                )


class LookUpIn:
    """Sums bags of rows of one weight with PyTorch."""

    def __init__(self, weight: torch.Tensor) -> None:
        self.weight = weight

    def __call__(self, rows: torch.Tensor, offsets: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
        return functional.embedding_bag(
            rows, self.weight, offsets, mode="sum", per_sample_weights=weights, include_last_offset=True
        )
