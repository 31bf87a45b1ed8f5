"""The sharders of ``EmbeddingCollection`` and ``CompositionalEmbeddingCollection``, and their sharded module."""

from __future__ import annotations

from typing import Any

import torch
from torchrec.distributed.embedding import (
    EmbeddingCollectionSharder,
    ShardedEmbeddingCollection,
)
from torchrec.distributed.embedding_sharding import EmbeddingSharding, EmbeddingShardingInfo
from torchrec.distributed.sharding.cw_sequence_sharding import CwSequenceEmbeddingSharding
from torchrec.distributed.sharding.dp_sequence_sharding import DpSequenceEmbeddingSharding
from torchrec.distributed.sharding.rw_sequence_sharding import RwSequenceEmbeddingSharding
from torchrec.distributed.sharding.tw_sequence_sharding import TwSequenceEmbeddingSharding
from torchrec.distributed.types import ParameterSharding, ShardingEnv
from torchrec.modules.embedding_modules import EmbeddingCollection

from dlrm_torchrec.embeddings.compositional.sequences import CompositionalEmbeddingCollection
from dlrm_torchrec.embeddings.tables import physical_configs
from dlrm_torchrec.sharding.modules.composed_shardings import Owner, Sender, check_sharding
from dlrm_torchrec.sharding.modules.compositional import part_kernels, stacked_tables
from dlrm_torchrec.sharding.modules.concurrent import Concurrent
from dlrm_torchrec.sharding.modules.sequences.lookup import SequenceLookup
from dlrm_torchrec.sharding.modules.sharder import Exact


class _Tw(Owner, TwSequenceEmbeddingSharding):
    look_up = SequenceLookup


class _Cw(Owner, CwSequenceEmbeddingSharding):
    look_up = SequenceLookup


class _Dp(Owner, DpSequenceEmbeddingSharding):
    look_up = SequenceLookup


class _Rw(Sender, RwSequenceEmbeddingSharding):
    look_up = SequenceLookup


SHARDINGS: dict[str, Any] = {"table_wise": _Tw, "column_wise": _Cw, "data_parallel": _Dp, "row_wise": _Rw}


class ShardedCompositionalEmbeddingCollection(Concurrent, ShardedEmbeddingCollection):
    """Plain and compositional tables of single ids that are sharded over ranks: TorchRec's sharded stacked tables.

    ``input_dist``, ``compute`` and ``output_dist`` are TorchRec's, so pipelines overlap them as for plain tables.
    Raises ValueError for a sharding type that a table cannot have.
    """

    def __init__(
        self,
        module: EmbeddingCollection,
        table_name_to_parameter_sharding: dict[str, ParameterSharding],
        *args: Any,
        **kwargs: Any,
    ) -> None:
        self.stacked = stacked_tables(module)  # before TorchRec's __init__, which creates the shardings
        for config in physical_configs(module):
            check_sharding(config, table_name_to_parameter_sharding[config.name].sharding_type)
        stored = module.physical() if isinstance(module, CompositionalEmbeddingCollection) else module
        super().__init__(stored, table_name_to_parameter_sharding, *args, **kwargs)

    @classmethod
    def create_grouped_sharding_infos(
        cls, module: EmbeddingCollection, *args: Any, **kwargs: Any
    ) -> dict[str, list[EmbeddingShardingInfo]]:
        grouped: dict[str, list[EmbeddingShardingInfo]] = super().create_grouped_sharding_infos(module, *args, **kwargs)
        part_kernels(grouped, stacked_tables(module))
        return grouped

    def create_embedding_sharding(  # noqa: PLR0917  # TorchRec's
        self,
        sharding_type: str,
        sharding_infos: list[EmbeddingShardingInfo],
        env: ShardingEnv,
        device: torch.device | None = None,
        qcomm_codecs_registry: dict[str, Any] | None = None,
    ) -> EmbeddingSharding:
        replicated = sharding_type == "data_parallel"
        options = {} if replicated else {"qcomm_codecs_registry": qcomm_codecs_registry}
        return SHARDINGS[sharding_type](self.stacked, sharding_infos, env, device, **options)

    @property
    def unsharded_module_type(self) -> type[EmbeddingCollection]:
        return CompositionalEmbeddingCollection if self.stacked else EmbeddingCollection


class SequenceSharder(Exact, EmbeddingCollectionSharder):
    """Shards an ``EmbeddingCollection``."""

    @property
    def sharded_module_type(self) -> type[ShardedCompositionalEmbeddingCollection]:
        return ShardedCompositionalEmbeddingCollection


class CompositionalEmbeddingCollectionSharder(SequenceSharder):
    """Shards a ``CompositionalEmbeddingCollection`` for ``DistributedModelParallel`` and TorchRec's planner."""

    @property
    def module_type(self) -> type[CompositionalEmbeddingCollection]:
        return CompositionalEmbeddingCollection
