"""TorchRec's sharding types for compositional tables. They decide which rank turns ids into rows.

If a rank owns whole rows or whole columns of a table, this owner does it: ids and vectors are sent once, as for a plain
table. If rows are spread over ranks, and are only summed, the sender does it: an id is sent as its k rows, and a vector
once. Products and paths of spread rows, and all vectors of single ids, are composed by the owner of the first row, see
``spread_group``.
"""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import torch
from torchrec.distributed.embedding_sharding import EmbeddingShardingInfo
from torchrec.distributed.embedding_types import GroupedEmbeddingConfig, ShardedEmbeddingTable
from torchrec.distributed.sharding.cw_sharding import CwPooledEmbeddingSharding
from torchrec.distributed.sharding.dp_sharding import DpPooledEmbeddingSharding
from torchrec.distributed.sharding.grid_sharding import GridPooledEmbeddingSharding
from torchrec.distributed.sharding.rw_sharding import RwPooledEmbeddingSharding
from torchrec.distributed.sharding.tw_sharding import TwPooledEmbeddingSharding
from torchrec.distributed.sharding.twcw_sharding import TwCwPooledEmbeddingSharding
from torchrec.distributed.sharding.twrw_sharding import TwRwPooledEmbeddingSharding
from torchrec.distributed.types import ShardingEnv
from torchrec.modules.embedding_configs import BaseEmbeddingConfig, EmbeddingConfig, PoolingType

from dlrm_torchrec.embeddings.compositional.operations import Concat
from dlrm_torchrec.embeddings.compositional.table_configs import StackedTable
from dlrm_torchrec.embeddings.managed.table_configs import ManagedEmbeddingBagConfig
from dlrm_torchrec.sharding.modules.composed_kernels import CompositionalLookup, equal_widths
from dlrm_torchrec.sharding.modules.rows_of_features import map_parts, parts_to_send, sources
from dlrm_torchrec.sharding.modules.sharder import COLUMN_TYPES, ROW_TYPES
from dlrm_torchrec.sharding.modules.spread_group import all_ordinals

Stacked = dict[str, StackedTable]  # by the name of the table
SEQUENCE_TYPES = ["table_wise", "column_wise", "row_wise", "data_parallel"]  # those that TorchRec has for single ids


def refusal(config: BaseEmbeddingConfig, kind: str) -> str | None:
    """Why a plain, compositional or managed table cannot have the sharding type ``kind``; None when it can."""
    of_single_ids = isinstance(config, EmbeddingConfig)
    if of_single_ids and kind not in SEQUENCE_TYPES:
        return "TorchRec has no such type for the vectors of single ids"
    if not of_single_ids and kind in ROW_TYPES and config.pooling is PoolingType.MEAN:
        return "a rank with a part of the rows does not know how many ids a bag has"  # and would divide other tables
    if isinstance(config, ManagedEmbeddingBagConfig) and kind not in ("table_wise", "row_wise"):
        return "one rank must decide which id a row belongs to"
    if not isinstance(config, StackedTable):
        return None
    if kind in COLUMN_TYPES and not config.operation.column_wise:
        return "paths and tensor trains mix all columns"
    if of_single_ids and kind in COLUMN_TYPES and isinstance(config.operation, Concat):
        return "the rows of an id are parts of its vector, and TorchRec puts a vector's parts in another order"
    if of_single_ids and kind in ROW_TYPES and config.stack.partition.shared_from:
        return "the rows that several hashes share lie on several ranks"
    return None


def check_sharding(config: BaseEmbeddingConfig, kind: str) -> None:
    """Raises ValueError when the table cannot have the sharding type ``kind``."""
    reason = refusal(config, kind)
    if reason is not None:
        raise ValueError(
            f"sharding of table {config.name!r} must be one of {offered_types(config)}: got {kind!r}, "
            f"but {reason}; choose one of them"
        )


def offered_types(config: BaseEmbeddingConfig) -> list[str]:
    """Sharding types that the table can have."""
    return [kind for kind in SHARDINGS if refusal(config, kind) is None]


class _Sources:
    """Names features like the logical tables, so that each feature's ids are sent once for all its outputs."""

    look_up: Any = CompositionalLookup

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

    def _create_lookup(
        self, stacked: Stacked, configs: list[GroupedEmbeddingConfig], device: torch.device | None, **options: Any
    ) -> torch.nn.Module:
        lookup: torch.nn.Module = self.look_up(
            stacked,
            grouped_configs=configs,
            pg=self.env.process_group,
            device=device if device is not None else self.device,
            env=self.env,
            **options,
        )
        return lookup

    def feature_names(self) -> list[str]:
        return [name for table in self._tables() for name in sources(table, self._stacked)]

    def _parted(self, configs: list[GroupedEmbeddingConfig]) -> list[GroupedEmbeddingConfig]:
        return [part for config in configs for part in equal_widths(config, self._stacked)]

    def _tables(self) -> list[ShardedEmbeddingTable]:
        """The tables in the order of their features."""
        inherited: Any = self
        nodes = getattr(self, "_grouped_embedding_configs_per_node", None)  # only types that place tables on nodes
        if nodes is None:
            return list(inherited.embedding_tables())
        return [table for configs in nodes for config in configs for table in config.embedding_tables]


class Owner(_Sources):
    """The rank that owns a table, or columns of it, turns ids into rows."""

    _options: ClassVar[dict[str, Any]] = {}  # of the lookup

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        inherited: Any = self
        per_rank = [self._parted(configs) for configs in inherited._grouped_embedding_configs_per_rank]
        inherited._grouped_embedding_configs_per_rank = per_rank
        inherited._grouped_embedding_configs = self._parted(inherited._grouped_embedding_configs)

    def features_per_rank(self) -> list[int]:
        return [
            sum(len(sources(table, self._stacked)) for config in configs for table in config.embedding_tables)
            for configs in self._grouped_embedding_configs_per_rank  # type: ignore[attr-defined]  # TorchRec's
        ]

    def create_lookup(self, device: torch.device | None = None, *_: Any, **__: Any) -> torch.nn.Module:
        inherited: Any = self
        return self._create_lookup(self._stacked, inherited._grouped_embedding_configs, device, **self._options)


class Sender(_Sources):
    """The rank that sends ids turns them into rows, or into ordinals of rows that ranks share."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._spread = {name: config for name, config in self._stacked.items() if not config.sums_rows}

    def create_input_dist(self, device: torch.device | None = None) -> torch.nn.Module:
        inherited: Any = super()
        input_dist: torch.nn.Module = inherited.create_input_dist(device)
        if any(table.name in self._stacked for table in self._tables()):
            input_dist.register_forward_pre_hook(partial(map_parts, parts_to_send(self._tables(), self._stacked)))
        return input_dist

    def _get_feature_hash_sizes(self) -> list[int]:
        """The numbers of values of each feature, which TorchRec cuts into a block for each rank."""
        return [self.num_values(table) for table in self._tables() for _ in table.feature_names]

    def num_values(self, table: ShardedEmbeddingTable) -> int:
        """How many values are sent in the place of the ids of a table."""
        if table.name in self._spread:
            return all_ordinals(table, self._spread[table.name])
        return int(table.num_embeddings)

    def create_lookup(self, device: torch.device | None = None, *_: Any, **__: Any) -> torch.nn.Module:
        inherited: Any = self
        configs = inherited._grouped_embedding_configs_per_rank[self.env.rank]
        ranks = getattr(self, "_intra_pg", None) or self.env.process_group
        return self._create_lookup(self._spread, configs, device, spread_over=ranks)


class _Tw(Owner, TwPooledEmbeddingSharding):
    pass


class _Cw(Owner, CwPooledEmbeddingSharding):
    pass


class _TwCw(Owner, TwCwPooledEmbeddingSharding):
    pass


class _Dp(Owner, DpPooledEmbeddingSharding):
    _options: ClassVar[dict[str, Any]] = {"scale_weight_gradients": False}


class RowWise(Sender, RwPooledEmbeddingSharding):
    pass


class _TwRw(Sender, TwRwPooledEmbeddingSharding):
    pass


class _Grid(Sender, GridPooledEmbeddingSharding):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        for places in (self._grouped_embedding_configs_per_rank, self._grouped_embedding_configs_per_node):
            places[:] = [self._parted(configs) for configs in places]


SHARDINGS: dict[str, Any] = {
    "table_wise": _Tw,
    "column_wise": _Cw,
    "table_column_wise": _TwCw,
    "data_parallel": _Dp,
    "row_wise": RowWise,
    "table_row_wise": _TwRw,
    "grid_shard": _Grid,
}
