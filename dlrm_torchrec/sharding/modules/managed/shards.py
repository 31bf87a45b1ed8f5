"""The maps of the buckets that this rank holds, and their tensors as those of whole tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torchrec.distributed.types import EnumerableShardingSpec, ParameterSharding, Shard, ShardedTensor, ShardMetadata

from dlrm_torchrec.embeddings.managed.id_map import IdMap
from dlrm_torchrec.embeddings.managed.table_configs import ManagedEmbeddingBagConfig


class MapShards:
    """The shards of one table's map, which lie where those of its rows do."""

    def __init__(self, config: ManagedEmbeddingBagConfig, sharding: ParameterSharding, rank: int) -> None:
        """Creates the map of this ``rank``; ValueError when buckets would have to be cut."""
        assert isinstance(sharding.sharding_spec, EnumerableShardingSpec)
        self.by_rows = sharding.sharding_type == "row_wise"
        self.config, self.rows = config, sharding.sharding_spec.shards
        size = config.num_embeddings // config.buckets
        if any(shard.shard_offsets[0] % size for shard in self.rows):
            raise ValueError(
                f"row-wise ranks of managed table {config.name!r} must divide its {config.buckets} buckets: got "
                f"{len(self.rows)}; choose table_wise for it"
            )
        self.local: IdMap | None = None  # if this rank has a shard
        for shard in self.rows:
            if shard.placement.rank() == rank:
                first, buckets = (number // size for number in (shard.shard_offsets[0], shard.shard_sizes[0]))
                self.local = IdMap(config, shard.placement.device(), first_bucket=first, buckets=buckets)

    @cached_property
    def _whole(self) -> dict[str, torch.Tensor]:
        return dict(IdMap(self.config, torch.device("meta")).named_buffers())

    def tensors(self, weight: ShardedTensor, process_group: Any) -> dict[str, ShardedTensor]:
        """The buffers of the map by name, whose local shards are this rank's own, like those of the ``weight``."""
        of_weight = weight.metadata().tensor_properties
        found = {}
        for name, whole in self._whole.items():
            shards = [self._scaled(shard, whole) for shard in self.rows]
            metadata = EnumerableShardingSpec(shards).build_metadata(
                whole.size(), replace(of_weight, dtype=whole.dtype)
            )
            local = []
            if self.local is not None:
                first = self._first(whole)
                own = next(each for each in metadata.shards_metadata if each.shard_offsets[0] == first)
                local = [Shard(self.local.get_buffer(name), own)]
            found[name] = ShardedTensor._init_from_local_shards_and_global_metadata(
                local_shards=local, sharded_tensor_metadata=metadata, process_group=process_group
            )
        return found

    def load(self, values: Mapping[str, Any]) -> None:
        """Take over whole buffers, or their shards, by name."""
        if self.local is None:
            return
        self.local.settle()
        for name, value in values.items():
            own = self.local.get_buffer(name)
            if isinstance(value, ShardedTensor):
                own.copy_(value.local_shards()[0].tensor)
            else:
                first = self._first(value)
                own.copy_(value[first : first + len(own)])

    def _first(self, whole: torch.Tensor) -> int:
        """Where this rank's shard begins."""
        assert self.local is not None
        return self.local.first_bucket * (len(whole) // self.config.buckets)

    def _scaled(self, shard: ShardMetadata, whole: torch.Tensor) -> ShardMetadata:
        """The part of the ``whole`` buffer that belongs to a shard of rows."""
        first, size = (
            rows * len(whole) // self.config.num_embeddings for rows in (shard.shard_offsets[0], shard.shard_sizes[0])
        )
        return ShardMetadata([first, *([0] * (whole.dim() - 1))], [size, *whole.shape[1:]], shard.placement)
