"""The sharder of ``ManagedEmbeddingBagCollection`` and its sharded module."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torchrec.distributed.batched_embedding_kernel import BatchedFusedEmbeddingBag
from torchrec.distributed.embedding_sharding import EmbeddingSharding
from torchrec.distributed.embedding_types import KJTList
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionContext
from torchrec.distributed.types import LazyAwaitable, ParameterSharding, ShardingEnv
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from dlrm_torchrec.embeddings.managed.buckets import BITS, undealt
from dlrm_torchrec.embeddings.managed.collection import (
    ManagedEmbeddingBagCollection,
    first_vectors,
    managed_configs,
    sources_of,
    with_values,
)
from dlrm_torchrec.embeddings.managed.id_map import Admitted, IdMap
from dlrm_torchrec.sharding.modules.composed_kernels import CompositionalLookup
from dlrm_torchrec.sharding.modules.compositional import (
    CompositionalEmbeddingBagCollectionSharder,
    ShardedCompositionalEmbeddingBagCollection,
)
from dlrm_torchrec.sharding.modules.managed.row_wise import ManagedRowWise
from dlrm_torchrec.sharding.modules.managed.shards import MapShards

Runs = list[tuple[str, int]]  # tables with how many features each has; the name is empty if the table is not managed


class ShardedManagedEmbeddingBagCollection(ShardedCompositionalEmbeddingBagCollection):
    """Plain, compositional and managed tables that are sharded over ranks.

    The rank that owns a row decides whose it is, between ``input_dist`` and lookup: in the order of steps, also when a
    pipeline has sent the ids of the next batch already. A row that changes hands gets its first vector and moments of
    0. In evaluation mode nothing changes. Raises ValueError for sharding types other than table_wise and row_wise.
    """

    def __init__(
        self,
        module: ManagedEmbeddingBagCollection,
        table_name_to_parameter_sharding: dict[str, ParameterSharding],
        env: ShardingEnv,
        *args: Any,
        **options: Any,
    ) -> None:
        self.managed = managed_configs(module.physical_configs())  # before TorchRec's __init__, which makes shardings
        super().__init__(module, table_name_to_parameter_sharding, env, *args, **options)
        self.process_group = env.process_group
        self.maps = {
            name: MapShards(config, table_name_to_parameter_sharding[name], env.rank)
            for name, config in self.managed.items()
        }
        self._runs = [self._runs_of(lookup) for lookup in self._lookups]
        self._stored = self._stored_rows()
        weights = self.state_dict()
        self.map_tensors = {
            f"maps.{table}.{name}": tensor
            for table, shards in self.maps.items()
            for name, tensor in shards.tensors(weights[f"embedding_bags.{table}.weight"], env.process_group).items()
        }
        self.register_state_dict_post_hook(_add_maps)
        self.register_load_state_dict_pre_hook(_take_maps)

    def sharding_class(self, kind: str) -> Callable[..., EmbeddingSharding]:
        return partial(ManagedRowWise, self.managed) if kind == "row_wise" else super().sharding_class(kind)

    def compute(self, ctx: EmbeddingBagCollectionContext, dist_input: KJTList) -> list[torch.Tensor]:
        return super().compute(ctx, self._rows(dist_input))

    def compute_and_output_dist(self, ctx: EmbeddingBagCollectionContext, input: KJTList) -> LazyAwaitable[KeyedTensor]:
        if any(features.device().type != "cpu" for features in input):
            input = self._rows(input)  # TorchRec then looks up without ``compute``
        return super().compute_and_output_dist(ctx, input)

    @property
    def unsharded_module_type(self) -> type[ManagedEmbeddingBagCollection]:
        return ManagedEmbeddingBagCollection

    def local_maps(self) -> Iterator[tuple[str, IdMap]]:
        """The maps that this rank holds, by table."""
        for name, shards in self.maps.items():
            if shards.local is not None:
                yield name, shards.local

    def _rows(self, dist_input: KJTList) -> KJTList:
        """Rows in place of the ids that this rank got."""
        mapped = [self._rows_of_lookup(features, runs) for features, runs in zip(dist_input, self._runs, strict=True)]
        return KJTList(mapped)

    def _rows_of_lookup(self, features: KeyedJaggedTensor, runs: Runs) -> KeyedJaggedTensor:
        if not any(name for name, _ in runs):
            return features
        counts, sizes, place = features.length_per_key(), [], 0
        for _, num_features in runs:
            sizes.append(sum(counts[place : place + num_features]))
            place += num_features
        parts = list(features.values().long().split(sizes))
        place = 0
        for number, (name, num_features) in enumerate(runs):
            if name:
                parts[number] = self._rows_of_table(name, parts[number], counts[place : place + num_features])
            place += num_features
        return with_values(features, torch.cat(parts))

    def _rows_of_table(self, name: str, ids: torch.Tensor, counts: list[int]) -> torch.Tensor:
        ids_to_rows = self.maps[name].local
        assert ids_to_rows is not None
        if self.maps[name].by_rows:  # the numbers of this rank's buckets, counted from the first
            ids = undealt(ids + ids_to_rows.first_bucket * (2**BITS // self.managed[name].buckets))
        else:
            for part, source in zip(ids.split(counts), sources_of(self.managed[name]), strict=True):
                source.check(part)
        if not self.training:
            return ids_to_rows.find(ids)[0]
        rows, admitted = ids_to_rows.train_step(ids)
        if admitted is not None:
            self._begin(name, admitted)
        return rows

    @torch.no_grad()
    def _begin(self, name: str, admitted: Admitted) -> None:
        """Let rows begin with their first vectors, and moments of 0."""
        kernel, number = self._stored[name]
        weight = kernel.split_embedding_weights()[number]
        weight[admitted.rows] = first_vectors(self.managed[name], admitted, weight)
        moments = kernel.split_optimizer_states()  # empty for SGD
        for moment in moments[number] if moments else ():
            moment[admitted.rows] = 0

    def _runs_of(self, lookup: torch.nn.Module) -> Runs:
        if not isinstance(lookup, CompositionalLookup):
            return []  # replicated tables
        return [(name if name in self.managed else "", num_features) for name, num_features in lookup.inputs()]

    def _stored_rows(self) -> dict[str, tuple[Any, int]]:
        """FBGEMM's kernel of each managed table of this rank, and the table's number in it."""
        return {
            table.name: (kernel.emb_module, number)
            for lookup in self._lookups
            for kernel in lookup.modules()
            if isinstance(kernel, BatchedFusedEmbeddingBag)
            for number, table in enumerate(kernel.config.embedding_tables)
            if table.name in self.managed
        }


class ManagedEmbeddingBagCollectionSharder(CompositionalEmbeddingBagCollectionSharder):
    """Shards a ``ManagedEmbeddingBagCollection`` for ``DistributedModelParallel`` and TorchRec's planner."""

    @property
    def module_type(self) -> type[ManagedEmbeddingBagCollection]:
        return ManagedEmbeddingBagCollection

    @property
    def sharded_module_type(self) -> type[ShardedManagedEmbeddingBagCollection]:
        return ShardedManagedEmbeddingBagCollection


def _add_maps(
    module: ShardedManagedEmbeddingBagCollection, state: dict[str, Any], prefix: str, _metadata: dict[str, Any]
) -> None:
    """Name the maps in a ``state_dict`` as those of an unsharded collection, and make them complete."""
    for _, ids_to_rows in module.local_maps():
        ids_to_rows.settle()
    state |= {f"{prefix}{name}": tensor for name, tensor in module.map_tensors.items()}


def _take_maps(module: ShardedManagedEmbeddingBagCollection, state: dict[str, Any], prefix: str, *_args: Any) -> None:
    """Take the maps out of what ``load_state_dict`` gets."""
    for table, shards in module.maps.items():
        start = f"{prefix}maps.{table}."
        names = [name for name in state if name.startswith(start)]
        shards.load({name.removeprefix(start): state.pop(name) for name in names})
