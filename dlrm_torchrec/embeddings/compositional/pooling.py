"""Vectors of bags of ids, from compositional tables."""

from __future__ import annotations

import torch
from torchrec.modules.embedding_configs import PoolingType

from dlrm_torchrec.embeddings.compositional.bags import Bags, LookUp
from dlrm_torchrec.embeddings.compositional.table_configs import StackedEmbeddingBagConfig
from dlrm_torchrec.embeddings.compositional.table_group import TableGroup


def pool_ids(
    config: StackedEmbeddingBagConfig, bags: Bags, look_up: LookUp, feature: str | None = None
) -> torch.Tensor:
    """Sums or means (bags, columns) over bags of ids of one feature, by default the first.

    Raises ValueError for an id outside of [0, number of ids).
    """
    return pool_group(config.group(feature or config.logical.feature_names[0]), config, bags, look_up)


def pool_group(group: TableGroup, config: StackedEmbeddingBagConfig, bags: Bags, look_up: LookUp) -> torch.Tensor:
    """Sums or means (bags, columns) for a group of tables that are alike ``config``.

    ``bags`` has the bags of one feature after another. A mean divides by the number of ids, even with weights. Raises
    ValueError for an id outside of [0, number of ids).
    """
    pooled = config.operation.pooled(group, bags, look_up)
    if config.pooling is PoolingType.MEAN:
        pooled = pooled / bags.lengths.clamp(min=1)[:, None]
    return pooled
