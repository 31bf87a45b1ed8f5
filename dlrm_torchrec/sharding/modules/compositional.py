"""The sharder of ``CompositionalEmbeddingBagCollection`` and its sharded module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torchrec.distributed.embedding_sharding import EmbeddingSharding, EmbeddingShardingInfo
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionContext
from torchrec.distributed.types import Awaitable, ParameterSharding, ShardingEnv
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrm_torchrec.embeddings.compositional.collection import CompositionalEmbeddingBagCollection
from dlrm_torchrec.embeddings.compositional.table_configs import StackedTable
from dlrm_torchrec.embeddings.tables import physical_configs
from dlrm_torchrec.sharding.modules.composed_kernels import kernel_key
from dlrm_torchrec.sharding.modules.composed_shardings import SHARDINGS, check_sharding
from dlrm_torchrec.sharding.modules.concurrent import ConcurrentShardedEmbeddingBagCollection
from dlrm_torchrec.sharding.modules.sharder import ExactSharder


class ShardedCompositionalEmbeddingBagCollection(ConcurrentShardedEmbeddingBagCollection):
    """Plain and compositional tables that are sharded over ranks: TorchRec's sharded collection of the stacked tables.

    ``input_dist``, ``compute`` and ``output_dist`` are TorchRec's, so pipelines overlap them as for plain tables.
    Raises ValueError for a sharding type that a table's operation cannot have.
    """

    def __init__(
        self,
        module: CompositionalEmbeddingBagCollection,
        table_name_to_parameter_sharding: dict[str, ParameterSharding],
        *args: Any,
        **kwargs: Any,
    ) -> None:
        self.stacked = stacked_tables(module)  # before TorchRec's __init__, which creates the shardings
        self._model_keys = module.model_keys()
        for config in module.physical_configs():
            check_sharding(config, table_name_to_parameter_sharding[config.name].sharding_type)
        super().__init__(module.physical(), table_name_to_parameter_sharding, *args, **kwargs)

    @classmethod
    def create_grouped_sharding_infos(
        cls, module: EmbeddingBagCollection, *args: Any, **kwargs: Any
    ) -> dict[str, list[EmbeddingShardingInfo]]:
        grouped: dict[str, list[EmbeddingShardingInfo]] = super().create_grouped_sharding_infos(module, *args, **kwargs)
        part_kernels(grouped, stacked_tables(module))
        return grouped

    def create_embedding_bag_sharding(  # noqa: PLR0917  # TorchRec's
        self,
        sharding_infos: list[EmbeddingShardingInfo],
        env: ShardingEnv,
        device: torch.device | None = None,
        permute_embeddings: bool = False,  # noqa: FBT001, FBT002  # TorchRec's
        qcomm_codecs_registry: dict[str, Any] | None = None,
    ) -> EmbeddingSharding:
        kind = sharding_infos[0].param_sharding.sharding_type
        options: dict[str, Any] = {}
        if kind != "data_parallel":
            options["qcomm_codecs_registry"] = qcomm_codecs_registry
        if kind in ("column_wise", "table_column_wise"):
            options["permute_embeddings"] = permute_embeddings
        return self.sharding_class(kind)(self.stacked, sharding_infos, env, device, **options)

    def sharding_class(self, kind: str) -> Callable[..., EmbeddingSharding]:
        """What makes a sharding of a type, from compositional tables and TorchRec's arguments."""
        found: type[EmbeddingSharding] = SHARDINGS[kind]
        return found

    def input_dist(self, ctx: EmbeddingBagCollectionContext, features: KeyedJaggedTensor) -> Awaitable[Any]:
        if features.variable_stride_per_key():
            raise ValueError(
                f"features of a collection with compositional tables must have one batch size: got "
                f"{features.stride_per_key()}; pad them, or keep its tables plain"
            )
        return super().input_dist(ctx, features)

    def _create_output_dist(self) -> None:
        super()._create_output_dist()
        self._name_outputs()

    def _update_output_dist(self) -> None:
        super()._update_output_dist()
        self._name_outputs()

    def _name_outputs(self) -> None:
        """Replace physical keys by the model's keys; the pieces of a concat are adjacent and become one key."""
        inherited: Any = self
        dims: dict[str, int] = {}
        for name, dim in zip(inherited._embedding_names, inherited._embedding_dims, strict=True):
            key = self._model_keys[name]
            dims[key] = dims.get(key, 0) + dim
        inherited._embedding_names, inherited._embedding_dims = list(dims), list(dims.values())
        inherited._dim_per_key = torch.tensor(list(dims.values()), device=inherited._device)

    @property
    def unsharded_module_type(self) -> type[CompositionalEmbeddingBagCollection]:
        return CompositionalEmbeddingBagCollection


class CompositionalEmbeddingBagCollectionSharder(ExactSharder):
    """Shards a ``CompositionalEmbeddingBagCollection`` for ``DistributedModelParallel`` and TorchRec's planner."""

    @property
    def module_type(self) -> type[CompositionalEmbeddingBagCollection]:
        return CompositionalEmbeddingBagCollection

    @property
    def sharded_module_type(self) -> type[ShardedCompositionalEmbeddingBagCollection]:
        return ShardedCompositionalEmbeddingBagCollection


def stacked_tables(module: nn.Module) -> dict[str, StackedTable]:
    """The physical configs of a collection's compositional tables, by name."""
    return {config.name: config for config in physical_configs(module) if isinstance(config, StackedTable)}


def part_kernels(grouped: dict[str, list[EmbeddingShardingInfo]], stacked: dict[str, StackedTable]) -> None:
    """Let tables share a kernel only if they have what ``kernel_key`` names in common."""
    for tables in grouped.values():
        for table in tables:
            config = stacked.get(table.embedding_config.name)
            key = None if config is None else kernel_key(config, table.param_sharding.compute_kernel)
            if key is not None:
                options = table.fused_params or {}
                # TorchRec puts tables with equal keys into one kernel
                table.fused_params = {**options, "_batch_key": f"{options.get('_batch_key')}: {key}"}
