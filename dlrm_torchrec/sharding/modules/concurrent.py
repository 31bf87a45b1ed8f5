"""Table lookups of one rank on all of its CPU cores.

FBGEMM's published CPU wheels are built without OpenMP, so a lookup uses only one core, forward and backward, whatever
``torch.get_num_threads()`` says. Tables are independent, so a rank's tables are divided into one lookup per thread.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from fbgemm_gpu.split_table_batched_embeddings_ops_training import SplitTableBatchedEmbeddingBagsCodegen
from torchrec.distributed.batched_embedding_kernel import BatchedFusedEmbeddingBag, EmbeddingFusedOptimizer
from torchrec.distributed.embedding_lookup import GroupedEmbeddingsLookup, GroupedPooledEmbeddingsLookup
from torchrec.distributed.embedding_sharding import EmbeddingShardingInfo
from torchrec.distributed.embedding_types import EmbeddingComputeKernel, KJTList
from torchrec.distributed.embeddingbag import (
    EmbeddingBagCollectionContext,
    EmbeddingBagCollectionSharder,
    ShardedEmbeddingBagCollection,
)
from torchrec.distributed.types import LazyAwaitable, ParameterSharding, ShardingEnv
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from dlrm_torchrec.embeddings.compositional.thread_pool import thread_pool
from dlrm_torchrec.sharding.modules.blank import BlankTables
from dlrm_torchrec.sharding.modules.sorted_updates import become_adam, can_sort, use_sorted_updates

Function = Callable[[], torch.Tensor]


class Concurrent:
    """A sharded collection whose fused tables are read and updated by ``get_num_threads()`` threads.

    Each table stays in one lookup, so without ``sorted_updates``, the results equal TorchRec's bit for bit.
    """

    def __init__(self, module: torch.nn.Module, *args: Any, sorted_updates: bool = False, **kwargs: Any) -> None:
        # before TorchRec's __init__, which creates the lookups
        self._sorted_updates = sorted_updates
        self._adam = {name.split(".")[1] for name, weight in module.named_parameters() if _has_adam(weight)}
        inherited: Any = super()
        inherited.__init__(module, *args, **kwargs)

    @classmethod
    def create_grouped_sharding_infos(cls, *args: Any, **kwargs: Any) -> dict[str, list[EmbeddingShardingInfo]]:
        inherited: Any = super()
        grouped: dict[str, list[EmbeddingShardingInfo]] = inherited.create_grouped_sharding_infos(*args, **kwargs)
        for tables in grouped.values():
            by_rank: dict[int, list[EmbeddingShardingInfo]] = defaultdict(list)
            for table in tables:
                if table.param_sharding.compute_kernel == EmbeddingComputeKernel.FUSED.value and _on_cpu(table):
                    by_rank[table.param_sharding.ranks[0]].append(table)
            for local in by_rank.values():
                numbers = [
                    table.embedding_config.embedding_dim * table.embedding_config.num_features() for table in local
                ]
                for table, part in zip(local, deal(numbers, torch.get_num_threads()), strict=True):
                    # TorchRec puts tables with equal keys into one lookup
                    table.fused_params = {**(table.fused_params or {}), "_batch_key": part}
                    if _has_adam(table.param):
                        table.fused_params["optimizer"] = EmbOptimType.EXACT_ADAGRAD  # FBGEMM makes none for Adam
        return grouped

    def _create_lookups(self) -> None:
        inherited: Any = super()
        inherited._create_lookups()
        own: Any = self
        for lookup in own._lookups:
            for kernel in lookup.modules():
                if isinstance(kernel, BatchedFusedEmbeddingBag):
                    tables = kernel.emb_module
                    if tables.use_cpu and kernel.config.embedding_tables[0].name in self._adam:
                        become_adam(tables)
                        kernel._optim = EmbeddingFusedOptimizer(kernel.config, tables, kernel._pg)
                    if self._wants_sorted_updates(tables):
                        use_sorted_updates(tables)

    def _wants_sorted_updates(self, tables: SplitTableBatchedEmbeddingBagsCodegen) -> bool:
        missing = tables.optimizer is EmbOptimType.ADAM or tables.optimizer_args.weight_decay != 0  # in FBGEMM, on CPU
        return can_sort(tables) and (self._sorted_updates or missing)


class ConcurrentShardedEmbeddingBagCollection(Concurrent, ShardedEmbeddingBagCollection):
    """A ``ShardedEmbeddingBagCollection`` with concurrent lookups."""

    def compute(self, ctx: EmbeddingBagCollectionContext, dist_input: KJTList) -> list[torch.Tensor]:  # noqa: ARG002 (TorchRec's)
        return [look_up(lookup, features) for lookup, features in zip(self._lookups, dist_input, strict=True)]

    def compute_and_output_dist(self, ctx: EmbeddingBagCollectionContext, input: KJTList) -> LazyAwaitable[KeyedTensor]:
        if any(features.device().type != "cpu" for features in input):
            return super().compute_and_output_dist(ctx, input)  # sends a sharding's vectors before it reads the next's
        return self.output_dist(ctx, self.compute(ctx, input))


class BlankSharder:
    """A sharder with concurrent lookups if the rank runs on a CPU with several threads.

    The sharded tables are blank: call ``initialize_tables``, or load a checkpoint, before training. With
    ``sorted_updates``, float32 tables on CPU are updated over sorted ids; Adam and a weight decay always are.
    """

    sharded_module_type: Any

    def __init__(self, *args: Any, sorted_updates: bool = False, **kwargs: Any) -> None:
        inherited: Any = super()
        inherited.__init__(*args, **kwargs)
        self.sorted_updates = sorted_updates

    def shard(  # noqa: PLR0917  # TorchRec's
        self,
        module: torch.nn.Module,
        params: dict[str, ParameterSharding],
        env: ShardingEnv,
        device: torch.device | None = None,
        module_fqn: str | None = None,
    ) -> torch.nn.Module:
        inherited: Any = self
        with BlankTables():
            sharded: torch.nn.Module = self.sharded_module_type(
                module,
                params,
                env,
                inherited.fused_params,
                device,
                qcomm_codecs_registry=inherited.qcomm_codecs_registry,
                module_fqn=module_fqn,
                sorted_updates=self.sorted_updates,
            )
        return sharded


class ConcurrentSharder(BlankSharder, EmbeddingBagCollectionSharder):
    """TorchRec's sharder of ``EmbeddingBagCollection`` with concurrent lookups."""

    @property
    def sharded_module_type(self) -> type[ConcurrentShardedEmbeddingBagCollection]:
        return ConcurrentShardedEmbeddingBagCollection


def _has_adam(weight: torch.Tensor) -> bool:
    return torch.optim.Adam in getattr(weight, "_optimizer_classes", [])


def _on_cpu(table: EmbeddingShardingInfo) -> bool:
    placement = table.param_sharding.sharding_spec.shards[0].placement
    return bool(placement.device().type == "cpu")


def deal(work: Sequence[int], parts: int) -> list[int]:
    """The part, 0..parts - 1, of each item; parts are runs of adjacent items with about equal sums of ``work``.

    >>> deal([1, 1, 1, 1], 2), deal([8, 1, 1, 1, 1], 2)
    ([0, 0, 1, 1], [0, 1, 1, 1, 1])
    """
    total = 2 * sum(work)
    middles = [2 * sum(work[:position]) + item for position, item in enumerate(work)]
    return [middle * parts // total for middle in middles]


def look_up(lookup: torch.nn.Module, features: KeyedJaggedTensor) -> torch.Tensor:
    """Pooled embeddings (B, sum of dims) of ``lookup``'s tables; without threads if they cannot help."""
    found = look_up_by_kernel(lookup, features) if isinstance(lookup, GroupedPooledEmbeddingsLookup) else None
    if found is None:
        pooled: torch.Tensor = lookup(features)
        return pooled
    return torch.cat(found, dim=1)


def look_up_by_kernel(
    lookup: GroupedPooledEmbeddingsLookup | GroupedEmbeddingsLookup, features: KeyedJaggedTensor
) -> tuple[torch.Tensor, ...] | None:
    """What each kernel of ``lookup`` finds, each on a thread; None if threads cannot help."""
    weights = features.weights_or_none()
    if (
        len(lookup.grouped_configs) < 2
        or getattr(lookup, "in_order", False)
        or torch.get_num_threads() == 1
        or features.device().type != "cpu"
        or features.variable_stride_per_key()
        or (weights is not None and weights.requires_grad)
    ):
        return None
    parts = features.split(lookup._feature_splits)
    return concurrently([partial(module, part) for module, part in zip(lookup._emb_modules, parts, strict=True)])


def concurrently(functions: Sequence[Function]) -> tuple[torch.Tensor, ...]:
    """The result of each function; the functions run at the same time, and so do their backward passes."""
    pool = thread_pool(torch.get_num_threads())
    if torch.is_grad_enabled():
        anchor = torch.empty(0, requires_grad=True)  # autograd records only results of a tensor that needs a gradient
        outputs: tuple[torch.Tensor, ...] = _Concurrently.apply(  # type: ignore[no-untyped-call]  # untyped in torch
            pool, functions, anchor
        )
        return outputs
    return tuple(pool.map(torch.no_grad()(_call), functions))


class _Concurrently(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, pool: ThreadPoolExecutor, functions: Sequence[Function], _anchor: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        ctx.pool, ctx.outputs = pool, list(pool.map(torch.enable_grad()(_call), functions))
        return tuple(output.detach() for output in ctx.outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[None, None, None]:
        list(ctx.pool.map(torch.autograd.backward, ctx.outputs, gradients))
        return None, None, None


def _call(function: Function) -> torch.Tensor:
    return function()
