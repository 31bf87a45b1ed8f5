"""Vectors of bags of ids, from a compositional table."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torchrec.modules.embedding_configs import PoolingType

from dlrm_torchrec.embeddings.compositional.bags import Bags, LookUp
from dlrm_torchrec.embeddings.compositional.table_configs import StackedEmbeddingBagConfig


def pool_ids(
    config: StackedEmbeddingBagConfig, bags: Bags, look_up: LookUp, features: Sequence[str] = ()
) -> torch.Tensor:
    """Sums or means (bags, columns) over bags of ids; a mean divides by the number of ids, even with weights.

    The bags hold those of ``features`` one feature after another; by default all features of the table. Raises
    ValueError for an id outside of [0, number of ids).
    """
    check_ids(config, bags, features)
    pooled = config.operation.pooled(config.stack, bags, look_up)
    if config.pooling is PoolingType.MEAN:
        pooled = pooled / bags.lengths.clamp(min=1)[:, None]
    return pooled


def check_ids(config: StackedEmbeddingBagConfig, bags: Bags, features: Sequence[str] = ()) -> None:
    """Raises ValueError for an id outside of [0, number of ids); a GPU asserts it instead, to avoid waiting."""
    ids, num_ids = bags.values, config.stack.partition.num_ids
    if not len(ids):
        return
    low, high = ids.aminmax()
    if ids.is_cuda:
        torch._assert_async((low >= 0) & (high < num_ids))
    elif low < 0 or high >= num_ids:
        value = int(low if low < 0 else high)
        position = int((ids == value).nonzero()[0])
        bag = int(torch.searchsorted(bags.lengths.cumsum(0), position, right=True))
        features = features or config.logical.feature_names
        feature = features[bag * len(features) // len(bags.lengths)]
        raise ValueError(
            f"ids of feature {feature!r} must be in [0, {num_ids}), the ids of table {config.name!r}: got {value}; "
            "check how that column was prepared"
        )
