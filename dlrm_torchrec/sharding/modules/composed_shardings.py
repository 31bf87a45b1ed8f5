"""TorchRec's sharding types for compositional tables. They decide which rank turns ids into rows.

If a rank owns whole rows or whole columns of a table, this owner does it: ids and vectors are sent once, as for a plain
table. If rows are spread over ranks, the sender does it: an id is sent as its k rows, and a vector once.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torchrec.distributed.embedding_sharding import EmbeddingShardingInfo
from torchrec.distributed.sharding.cw_sharding import CwPooledEmbeddingSharding
from torchrec.distributed.sharding.dp_sharding import DpPooledEmbeddingSharding
from torchrec.distributed.sharding.grid_sharding import GridPooledEmbeddingSharding
from torchrec.distributed.sharding.rw_sharding import RwPooledEmbeddingSharding
from torchrec.distributed.sharding.tw_sharding import TwPooledEmbeddingSharding
from torchrec.distributed.sharding.twcw_sharding import TwCwPooledEmbeddingSharding
from torchrec.distributed.sharding.twrw_sharding import TwRwPooledEmbeddingSharding
from torchrec.distributed.types import ShardingEnv
from torchrec.modules.embedding_configs import EmbeddingBagConfig, EmbeddingTableConfig, PoolingType
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrm_torchrec.embeddings.compositional.bags import Bags
from dlrm_torchrec.embeddings.compositional.operations import Summed
from dlrm_torchrec.embeddings.compositional.pooling import check_ids
from dlrm_torchrec.embeddings.compositional.table_configs import StackedEmbeddingBagConfig, output_names
from dlrm_torchrec.sharding.modules.composed_kernels import CompositionalLookup, sources
from dlrm_torchrec.sharding.modules.sharder import COLUMN_TYPES, ROW_TYPES

Stacked = dict[str, StackedEmbeddingBagConfig]  # by the name of the table


def refusal(config: EmbeddingBagConfig, kind: str) -> str | None:
    """Why a plain or compositional table cannot have the sharding type ``kind``; None when it can."""
    if kind in ROW_TYPES and config.pooling is PoolingType.MEAN:  # TorchRec would also divide other tables' vectors
        return "a rank with a part of the rows does not know how many ids a bag has"
    if not isinstance(config, StackedEmbeddingBagConfig):
        return None
    if kind in ROW_TYPES and not config.operation.row_wise:
        return "the rows of an id must be on one rank, where they are combined before the bag is summed"
    if kind in COLUMN_TYPES and not config.operation.column_wise:
        return "the networks of a path mix all columns"
    return None


def check_sharding(config: EmbeddingBagConfig, kind: str) -> None:
    """Raises ValueError when the table cannot have the sharding type ``kind``."""
    reason = refusal(config, kind)
    if reason is not None:
        raise ValueError(
            f"sharding of table {config.name!r} must be one of {offered_types(config)}: got {kind!r}, "
            f"but {reason}; choose one of them"
        )


def offered_types(config: EmbeddingBagConfig) -> list[str]:
    """Sharding types that the table can have."""
    return [kind for kind in SHARDINGS if refusal(config, kind) is None]


class _Sources:
    """Names features like the logical tables, so that each feature's ids are sent once for all its outputs."""

    def __init__(
        self,
        stacked: Stacked,
        infos: list[EmbeddingShardingInfo],
        env: ShardingEnv,
        device: torch.device | None,
        **options: Any,
    ) -> None:
        self._stacked, self.env, self.device = stacked, env, device
        inherited: Any = super()
        inherited.__init__(infos, env, device, **options)

    def feature_names(self) -> list[str]:
        return [name for table in self._tables() for name in sources(table, self._stacked)]

    def _tables(self) -> list[EmbeddingTableConfig]:
        """The tables in the order of their features."""
        inherited: Any = self
        nodes = getattr(self, "_grouped_embedding_configs_per_node", None)  # only types that place tables on nodes
        if nodes is None:
            return list(inherited.embedding_tables())
        return [table for configs in nodes for config in configs for table in config.embedding_tables]


class _Owner(_Sources):
    def features_per_rank(self) -> list[int]:
        return [
            sum(len(sources(table, self._stacked)) for config in configs for table in config.embedding_tables)
            for configs in self._grouped_embedding_configs_per_rank  # type: ignore[attr-defined]  # TorchRec's
        ]

    def create_lookup(self, device: torch.device | None = None, *_: Any, **__: Any) -> CompositionalLookup:
        inherited: Any = self
        return CompositionalLookup(
            self._stacked,
            grouped_configs=inherited._grouped_embedding_configs,
            pg=self.env.process_group,
            device=device if device is not None else self.device,
            scale_weight_gradients=not isinstance(self, DpPooledEmbeddingSharding),
            env=self.env,
        )


class _Sender(_Sources):
    def create_input_dist(self, device: torch.device | None = None) -> torch.nn.Module:
        inherited: Any = super()
        configs = [self._stacked.get(table.name) for table in self._tables() for _ in sources(table, self._stacked)]
        input_dist: torch.nn.Module = inherited.create_input_dist(device)
        if any(config is not None for config in configs):
            input_dist.register_forward_pre_hook(partial(_ids_to_rows, configs))
        return input_dist


def _ids_to_rows(
    configs: list[StackedEmbeddingBagConfig | None], _module: torch.nn.Module, features: tuple[KeyedJaggedTensor]
) -> tuple[KeyedJaggedTensor]:
    """Converts features of ids to features of physical rows; ``configs`` has one entry per feature, None if plain."""
    (ids,) = features
    keys, parts = [], []
    for config, feature in zip(configs, ids.split([1] * len(configs)), strict=True):
        bags = Bags(feature.values(), feature.lengths(), feature.weights_or_none())
        if config is None:
            keys += feature.keys()
        else:
            check_ids(config, bags, feature.keys())
            assert isinstance(config.operation, Summed)
            bags = config.operation.rows(config.stack, bags)
            keys += output_names(feature.keys()[0], len(bags.lengths) // ids.stride())
        parts.append(bags)
    weights = [part.weights for part in parts if part.weights is not None]
    rows = KeyedJaggedTensor(
        keys=keys,
        values=torch.cat([part.values for part in parts]),
        lengths=torch.cat([part.lengths for part in parts]),
        weights=torch.cat(weights) if weights else None,
        stride=ids.stride(),
    )
    return (rows,)


class _Tw(_Owner, TwPooledEmbeddingSharding):
    pass


class _Cw(_Owner, CwPooledEmbeddingSharding):
    pass


class _TwCw(_Owner, TwCwPooledEmbeddingSharding):
    pass


class _Dp(_Owner, DpPooledEmbeddingSharding):
    pass


class _Rw(_Sender, RwPooledEmbeddingSharding):
    pass


class _TwRw(_Sender, TwRwPooledEmbeddingSharding):
    pass


class _Grid(_Sender, GridPooledEmbeddingSharding):
    pass


SHARDINGS: dict[str, Any] = {
    "table_wise": _Tw,
    "column_wise": _Cw,
    "table_column_wise": _TwCw,
    "data_parallel": _Dp,
    "row_wise": _Rw,
    "table_row_wise": _TwRw,
    "grid_shard": _Grid,
}
