"""Tables in the host's memory whose rows are cached on the device: what keeps the two copies of a row alike.

FBGEMM reads a row from the cache if it is there, and prefetches the rows of the next batch while this one is trained.
It does not know of numbers that others write into the host's memory, nor that a prefetched batch is not the next one.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from fbgemm_gpu.split_table_batched_embeddings_ops_training import SplitTableBatchedEmbeddingBagsCodegen as Kernel
from torch import nn
from torchrec.distributed.embedding_types import EmbeddingComputeKernel
from torchrec.distributed.types import EmbeddingModuleShardingPlan, ShardedModule, ShardingPlan

_MISSING = -1  # the place in the cache of a row that is not there


def has_cached_tables(plan: ShardingPlan) -> bool:
    """Whether any rank caches rows of a table."""
    modules = [module for module in plan.plan.values() if isinstance(module, EmbeddingModuleShardingPlan)]
    kernels = {parameter.compute_kernel for module in modules for parameter in module.values()}
    return EmbeddingComputeKernel.FUSED_UVM_CACHING.value in kernels


def cached_kernels(model: nn.Module) -> list[Kernel]:
    """The kernels of this rank's tables that have a cache."""
    sharded = [module for module in model.modules() if isinstance(module, ShardedModule)]
    lookups = [lookup for module in sharded for lookup in getattr(module, "_lookups", [])]  # torch does not list them
    kernels = [kernel for lookup in lookups for kernel in lookup.modules() if isinstance(kernel, Kernel)]
    return [kernel for kernel in kernels if kernel.lxu_cache_weights.numel()]


def forget_cached(kernel: Kernel) -> None:
    """Empty the cache without writing it back: from now on, rows are those of the host's memory.

    Rows that were prefetched for a batch are read from the host's memory when it comes.
    """
    _wait_for_prefetch(kernel)
    kernel.reset_cache_states()
    kernel.lxu_cache_locking_counter.zero_()
    for places in kernel.lxu_cache_locations_list:
        places.fill_(_MISSING)
    if kernel.prefetch_stream is not None:
        kernel.prefetch_stream.wait_stream(torch.cuda.current_stream())


def set_aside_prefetched(kernel: Kernel) -> Callable[[], None]:
    """Let ``kernel`` look up other batches than the ones that it has prefetched, until the result is called.

    Rows are not locked in the cache meanwhile, because only a backward pass unlocks them.
    """
    _wait_for_prefetch(kernel)
    steps, places, locks = kernel.timesteps_prefetched, kernel.lxu_cache_locations_list, kernel.lock_cache_line
    kernel.timesteps_prefetched, kernel.lxu_cache_locations_list, kernel.lock_cache_line = [], [], False

    def put_back() -> None:
        kernel.timesteps_prefetched, kernel.lxu_cache_locations_list, kernel.lock_cache_line = steps, places, locks
        kernel.flush()  # other batches may have taken the places of the prefetched rows
        forget_cached(kernel)

    return put_back


def _wait_for_prefetch(kernel: Kernel) -> None:
    if kernel.prefetch_stream is not None:
        torch.cuda.current_stream().wait_stream(kernel.prefetch_stream)
