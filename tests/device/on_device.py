"""Sharded tables as they are on a GPU, on the double of one; FBGEMM's kernels are stood in for by one operator each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

import pytest
import torch
import torch.distributed as dist
from fbgemm_gpu.split_table_batched_embeddings_ops_common import PoolingMode
from torch import nn
from torch.distributed.optim import _apply_optimizer_in_backward as apply_in_backward
from torch.nn import functional
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import _disable_current_modes
from torchrec.distributed import embeddingbag
from torchrec.distributed.batched_embedding_kernel import (
    BatchedDenseEmbeddingBag,
    BatchedFusedEmbedding,
    BatchedFusedEmbeddingBag,
)
from torchrec.distributed.embedding import ShardedEmbeddingCollection
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.types import EmbeddingModuleShardingPlan, ShardingPlan, ShardMetadata
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection

from dlrm_torchrec.embeddings.compositional.collection import CompositionalEmbeddingBagCollection
from dlrm_torchrec.embeddings.tables import physical_configs
from dlrm_torchrec.sharding.modules.compositional import CompositionalEmbeddingBagCollectionSharder
from dlrm_torchrec.sharding.modules.sequences.sharded import CompositionalEmbeddingCollectionSharder, SequenceSharder
from dlrm_torchrec.sharding.modules.sharder import ExactSharder
from tests.device.double import META, Double, OnDevice
from tests.sharding.sharded import Wrapped, hand_made_plan


@contextmanager
def one_rank() -> Iterator[None]:
    """A process group of one rank on the double of a GPU.

    It is torch's fake one, with which TorchRec does not slice tables into parameters, or must be kept from it. The
    double has no streams, and nothing is averaged over ranks.
    """
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=1)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(embeddingbag, "DistributedDataParallel", lambda module, **_: module)
            patch.setattr(ShardedEmbeddingCollection, "_initialize_torch_state", lambda *_, **__: None)
            patch.setattr(torch.cuda, "current_stream", lambda _: torch.Stream(torch.device("cpu")))
            yield
    finally:
        dist.destroy_process_group()


def shard(
    model: nn.Module,
    tables: EmbeddingBagCollection | EmbeddingCollection,
    kind: str,
    optimizer: type[torch.optim.Optimizer],
) -> DistributedModelParallel:
    """``model``, whose ``tables`` have one sharding type; call it inside of ``Double()``."""
    name = next(name for name, module in model.named_modules() if module is tables)
    return sharded(model, ShardingPlan({name: placed(tables, kind)}), optimizer)


def sharded(model: nn.Module, plan: ShardingPlan, optimizer: type[torch.optim.Optimizer]) -> DistributedModelParallel:
    """``model`` as in the plan."""
    kinds = (ExactSharder, CompositionalEmbeddingBagCollectionSharder)
    of_single_ids = (SequenceSharder, CompositionalEmbeddingCollectionSharder)
    sharders = [sharder(optimizer) for sharder in (*kinds, *of_single_ids)]
    return DistributedModelParallel(
        model, device=META, plan=plan, sharders=sharders, init_data_parallel=False, init_parameters=False
    )


def placed(tables: EmbeddingBagCollection | EmbeddingCollection, kind: str) -> EmbeddingModuleShardingPlan:
    """A plan of one sharding type for all ``tables``, on the device."""
    plan = hand_made_plan(tables, {config.name: kind for config in physical_configs(tables)})
    for parameter in plan.values():
        if parameter.sharding_spec:
            shards = parameter.sharding_spec.shards
            shards[:] = [ShardMetadata(each.shard_offsets, each.shard_sizes, f"rank:0/{META}") for each in shards]
    return plan


class Kernel:
    """What FBGEMM's kernel computes: sums or means of bags of rows, one feature's columns beside another's, or rows.

    Its backward keeps the gradients of the weights in ``gradient`` instead of updating them.
    """

    def __init__(self, owner: Any, device: Double) -> None:
        self.tables, self.device = owner.emb_module, device
        self.names = [table.name for table in owner.config.embedding_tables]
        self.features = [
            number for number, table in enumerate(owner.config.embedding_tables) for _ in table.feature_names
        ]
        self.sizes = [(rows, dim) for rows, dim, *_ in self.tables.embedding_specs]
        self.starts = list(accumulate((rows * dim for rows, dim in self.sizes), initial=0))
        own = (getattr(self.tables, name, None) for name in ("weights", "weights_host", "weights_dev"))
        weights = next(each for each in own if each is not None and each.numel())
        # FBGEMM keeps data-parallel tables on the CPU where there is no GPU
        self.weights = (weights.numbers if isinstance(weights, OnDevice) else weights).detach().uniform_(-0.1, 0.1)
        self.gradient = torch.zeros_like(self.weights)
        self.anchor = torch.empty(0, device=META, requires_grad=True)  # so that torch calls backward

    def __call__(
        self,
        indices: torch.Tensor,
        offsets: torch.Tensor,
        per_sample_weights: torch.Tensor | None = None,
        **options: Any,
    ) -> torch.Tensor:
        assert not any(value is not None for value in options.values()), options
        sums: torch.Tensor = _Sums.apply(  # type: ignore[no-untyped-call]  # untyped in torch
            self, indices, offsets, per_sample_weights, self.anchor
        )
        return sums

    def matrices(self, numbers: torch.Tensor) -> list[torch.Tensor]:
        """``numbers`` of all rows, as one matrix for each table or shard."""
        pairs = zip(self.starts, self.sizes, strict=False)
        return [numbers[start : start + rows * dim].view(rows, dim) for start, (rows, dim) in pairs]

    def pool(self, weights: torch.Tensor, indices: Any, offsets: Any, factors: Any) -> torch.Tensor:
        mode = getattr(self.tables, "pooling_mode", None)
        tables = self.matrices(weights)
        features = self.features
        if self.tables.D_offsets.numel() - 1 < len(tables):  # read as one table
            tables, features = [weights.view(-1, self.sizes[0][1])], [0]
        ends = offsets.tolist()
        bags, pooled = (len(offsets) - 1) // len(features), []
        for number, table in enumerate(features):
            own = offsets[number * bags : (number + 1) * bags + 1]
            some = slice(ends[number * bags], ends[(number + 1) * bags])
            if mode is PoolingMode.NONE:
                pooled.append(tables[table][indices[some]])
                continue
            shares = None if factors is None else factors[some]
            pooled.append(
                functional.embedding_bag(
                    indices[some],
                    tables[table],
                    own - some.start,
                    mode="mean" if mode is PoolingMode.MEAN else "sum",
                    per_sample_weights=shares,
                    include_last_offset=True,
                )
            )
        return torch.cat(pooled, dim=0 if mode is PoolingMode.NONE else 1)


class _Sums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kernel: Kernel, indices: Any, offsets: Any, factors: Any, _anchor: Any) -> torch.Tensor:
        kernel.device.operators["lookup"] += 1
        given = [None if each is None else numbers_of(each) for each in (indices, offsets, factors)]
        ctx.kernel, ctx.given = kernel, given
        with _disable_current_modes():
            return OnDevice(kernel.pool(kernel.weights, *given))

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
        kernel, (indices, offsets, factors) = ctx.kernel, ctx.given
        kernel.device.operators["update"] += 1
        weights = kernel.weights.clone().requires_grad_()
        learned = None if factors is None else factors.detach().clone().requires_grad_()
        with torch.enable_grad(), _disable_current_modes():
            pooled = kernel.pool(weights, indices, offsets, learned)
            wanted = [weights] if learned is None else [weights, learned]
            gradient, *rest = torch.autograd.grad(pooled, wanted, numbers_of(gradients[0]))
        kernel.gradient += gradient
        return None, None, None, OnDevice(rest[0]) if rest else None, None


def numbers_of(tensor: torch.Tensor) -> torch.Tensor:
    """The numbers of a tensor on the device."""
    assert isinstance(tensor, OnDevice), "a kernel's operands must be on the device"
    return tensor.numbers


def stand_in(model: nn.Module, device: Double) -> list[Kernel]:
    """Puts a ``Kernel`` in place of each of FBGEMM's in ``model``."""
    kernels = []
    for lookup in (lookup for module in model.modules() for lookup in getattr(module, "_lookups", [])):
        for owner in lookup.modules():
            if isinstance(owner, (BatchedFusedEmbeddingBag, BatchedFusedEmbedding, BatchedDenseEmbeddingBag)):
                owner.emb_module.forward = Kernel(owner, device)
                kernels.append(owner.emb_module.forward)
    return kernels


def lookup_on_device(
    device: Double, configs: list[EmbeddingBagConfig], kind: str, weights: Mapping[str, torch.Tensor], *, weighted: bool
) -> tuple[DistributedModelParallel, list[Kernel]]:
    """Tables with these ``weights`` (by name) on the device, and their kernels; call it inside of ``device``."""
    tables = CompositionalEmbeddingBagCollection(configs, weighted, META)
    apply_in_backward(torch.optim.SGD, tables.parameters(), {"lr": 0.1})
    model = shard(Wrapped(tables), tables, kind, torch.optim.SGD)
    kernels = stand_in(model, device)
    for kernel in kernels:
        columns: Counter[str] = Counter()  # those of a table are dealt out in order
        for name, matrix in zip(kernel.names, kernel.matrices(kernel.weights), strict=True):
            first = columns[name]
            matrix.copy_(weights[name][:, first : first + matrix.size(1)])
            columns[name] += matrix.size(1)
    return model, kernels


def gradients(kernels: list[Kernel]) -> dict[str, torch.Tensor]:
    """The gradient of each table, from those of its shards of columns."""
    found: dict[str, list[torch.Tensor]] = {}
    for kernel in kernels:
        for name, matrix in zip(kernel.names, kernel.matrices(kernel.gradient), strict=True):
            found.setdefault(name, []).append(matrix)
    return {name: torch.cat(shards, dim=1) for name, shards in found.items()}
