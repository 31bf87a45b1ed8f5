"""A drop-in replacement for TorchRec's ``EmbeddingCollection`` in which any table may be compositional."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional
from torchrec.modules.embedding_configs import DataType, EmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingCollection
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor

from dlrm_torchrec.embeddings.compositional.bags import Bags
from dlrm_torchrec.embeddings.compositional.collection import LookUpIn
from dlrm_torchrec.embeddings.compositional.table_configs import CompositionalEmbeddingConfig, StackedEmbeddingConfig


class CompositionalEmbeddingCollection(EmbeddingCollection):
    """Plain and compositional tables that give one vector for each id of their features.

    The collection takes the ``KeyedJaggedTensor`` that an ``EmbeddingCollection`` with the same names, rows and dim
    takes, and returns the same ``JaggedTensor`` (ids, dim) by feature; with ``need_indices``, its weights are the ids.
    The partitions of a table are stacked in ``embeddings.<table>.weight``.
    """

    device = torch.device("meta")  # until the tables have been created

    def __init__(
        self,
        tables: Sequence[EmbeddingConfig],
        device: torch.device | None = None,
        need_indices: bool = False,  # noqa: FBT001, FBT002  # as EmbeddingCollection, which this stands in for
    ) -> None:
        physical, model = [], []
        for config in tables:
            composed = isinstance(config, CompositionalEmbeddingConfig)
            physical.append(config.stacked() if composed else config)
            model.append(config.model_config() if composed else config)
        super().__init__(model, torch.device("meta"), need_indices)  # it wants equal dims, also where rows are shorter
        self._physical = physical
        self.device = device or torch.device("cpu")
        for config in physical:
            dtype = torch.float32 if config.data_type is DataType.FP32 else torch.float16
            size = config.num_embeddings, config.embedding_dim
            self.embeddings[config.name] = nn.Embedding(*size, device=device, dtype=dtype)
        self.reset_parameters()

    def physical_configs(self) -> list[EmbeddingConfig]:
        """The tables as they are stored: a compositional table is a ``StackedEmbeddingConfig``."""
        return self._physical

    def physical(self) -> EmbeddingCollection:
        """The stored tables as a plain collection that shares the parameters of this one."""
        plain = _StoredTables(self.embedding_configs(), torch.device("meta"), self.need_indices())
        plain.physical, plain.embeddings, plain.device = self._physical, self.embeddings, self.device
        return plain

    def reset_parameters(self) -> None:
        """Draw the initial weights anew."""
        for config in self._physical:
            assert config.init_fn is not None
            config.init_fn(self.embeddings[config.name].weight)

    def forward(self, features: KeyedJaggedTensor) -> dict[str, JaggedTensor]:
        jagged = features.to_dict()
        found = {}
        for config, keys in zip(self._physical, self.embedding_names_by_table(), strict=True):
            weight = self.embeddings[config.name].weight
            for feature, key in zip(config.feature_names, keys, strict=True):
                ids = jagged[feature]
                if isinstance(config, StackedEmbeddingConfig):
                    bags = Bags(ids.values().long(), ids.lengths().long(), None, [len(ids.values())])
                    vectors = config.operation.vectors(config.group(feature), bags, LookUpIn(weight))
                else:
                    vectors = functional.embedding(ids.values(), weight)
                indices = ids.values() if self.need_indices() else None
                found[key] = JaggedTensor(vectors.float(), lengths=ids.lengths(), weights=indices)
        return found


class _StoredTables(EmbeddingCollection):
    """A plain collection created without memory of its own, whose rows may be shorter than its vectors."""

    device = torch.device("meta")
    physical: list[EmbeddingConfig]

    def embedding_configs(self) -> list[EmbeddingConfig]:
        return self.physical
