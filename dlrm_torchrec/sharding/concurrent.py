"""Table lookups of one rank on several CPU cores.

FBGEMM's published CPU wheels are built without OpenMP: one table-batched lookup, forward or backward, keeps one core
busy whatever ``torch.get_num_threads`` says. Tables are independent, so here they are dealt into as many lookups as
there are threads, and each thread runs its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from threading import Barrier
from typing import Any

import torch
from torch.autograd.function import FunctionCtx
from torchrec.distributed.embedding_lookup import GroupedPooledEmbeddingsLookup
from torchrec.distributed.embedding_sharding import EmbeddingShardingInfo
from torchrec.distributed.embedding_types import EmbeddingComputeKernel, KJTList
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionContext, ShardedEmbeddingBagCollection
from torchrec.distributed.types import LazyAwaitable
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor


@cache
def thread_pool(threads: int) -> ThreadPoolExecutor:
    """``threads`` workers, each of which runs its torch operators on one core."""
    started = Barrier(threads + 1)
    intra_op_threads = torch.get_num_threads()

    def start() -> None:
        torch.set_num_threads(1)
        started.wait()

    pool = ThreadPoolExecutor(threads, thread_name_prefix="lookup", initializer=start)
    for _ in range(threads):
        pool.submit(int)
    started.wait()
    torch.set_num_threads(intra_op_threads)  # the workers' call also set what threads yet to come will use
    return pool


class _Concurrently(torch.autograd.Function):
    """Runs functions, and later their backward passes, on the threads of a pool."""

    @staticmethod
    def forward(
        ctx: Any, pool: ThreadPoolExecutor, functions: list[Callable[[], torch.Tensor]], _: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        def record(function: Callable[[], torch.Tensor]) -> torch.Tensor:
            with torch.enable_grad():
                return function()

        ctx.pool, ctx.outputs = pool, list(pool.map(record, functions))
        return tuple(output.detach() for output in ctx.outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[None, None, None]:
        for _ in ctx.pool.map(torch.autograd.backward, ctx.outputs, gradients):
            pass
        return None, None, None
