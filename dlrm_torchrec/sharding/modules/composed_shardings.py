"""TorchRec's sharding types for compositional tables: where ids become rows, and rows become vectors.

On the owner, where a rank holds whole rows or whole columns of a table: ids and vectors cross the wire once, as for a
plain table. On the sender, where rows are spread over ranks: an id crosses as its k rows, a vector once.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torchrec.distributed.sharding.cw_sharding import CwPooledEmbeddingSharding
from torchrec.distributed.sharding.dp_sharding import DpPooledEmbeddingSharding
from torchrec.distributed.sharding.grid_sharding import GridPooledEmbeddingSharding
from torchrec.distributed.sharding.rw_sharding import RwPooledEmbeddingSharding
from torchrec.distributed.sharding.tw_sharding import TwPooledEmbeddingSharding
from torchrec.distributed.sharding.twcw_sharding import TwCwPooledEmbeddingSharding
from torchrec.distributed.sharding.twrw_sharding import TwRwPooledEmbeddingSharding
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
    """Why a table, plain or compositional, cannot be sharded so; None: it can."""
    if kind in ROW_TYPES and config.pooling is PoolingType.MEAN:  # TorchRec divides the vectors of other tables, too
        return "a rank with a part of the rows does not know how many ids a bag has"
    if not isinstance(config, StackedEmbeddingBagConfig):
        return None
    if kind in ROW_TYPES and not config.operation.row_wise:
        return "the rows of an id must lie on one rank, to be combined before the bag is summed"
    if kind in COLUMN_TYPES and not config.operation.column_wise:
        return "the networks of a path mix all columns"
    return None


def check_sharding(config: EmbeddingBagConfig, kind: str) -> None:
    """ValueError where ``kind`` is a sharding type that the table cannot have."""
    reason = refusal(config, kind)
    if reason is not None:
        raise ValueError(
            f"sharding of table {config.name!r} must be one of {offered_types(config)}: got {kind!r}, "
            f"with which {reason}; choose one of them"
        )


def offered_types(config: EmbeddingBagConfig) -> list[str]:
    """Sharding types that the table can have."""
    return [kind for kind in SHARDINGS if refusal(config, kind) is None]


class _Sources:
    """Ids arrive by the features of the logical tables, each once, however many outputs it has."""

    def __init__(self, stacked: Stacked, *args: Any, **kwargs: Any) -> None:
        self._stacked = stacked
        super().__init__(*args, **kwargs)

    def feature_names(self) -> list[str]:
        return [name for table in self._tables() for name in sources(table, self._stacked)]

    def _tables(self) -> list[EmbeddingTableConfig]:
        """Tables in the order of their features."""
        inherited: Any = self
        nodes = getattr(self, "_grouped_embedding_configs_per_node", None)  # of types that place tables on nodes
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
            pg=inherited._env.process_group,
            device=device if device is not None else inherited._device,
            scale_weight_gradients=not isinstance(self, DpPooledEmbeddingSharding),
            env=inherited._env,
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
    """Features of ids as features of physical rows; ``configs`` has one entry per feature, None for a plain table."""
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
