"""The ways to shard each table, with the bytes of weights and moments that FBGEMM allocates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from functools import cached_property
from math import prod
from typing import Any, get_args

import torch
from torch import nn
from torchrec.distributed.planner.enumerators import EmbeddingEnumerator
from torchrec.distributed.planner.types import (
    CollectiveType,
    Perf,
    Shard,
    ShardingOption,
    Storage,
    Topology,
)
from torchrec.distributed.types import ModuleSharder
from torchrec.optim import RowWiseAdagrad

from dlrm_torchrec.sharding.config import ShardingType
from dlrm_torchrec.sharding.modules.sharder import ROW_TYPES, DenseAdam
from dlrm_torchrec.sharding.planner.constraints import TableConstraints

SHARDING_TYPES: tuple[str, ...] = get_args(ShardingType)
KERNELS = ["dense", "fused", "fused_uvm_caching", "fused_uvm"]
MOMENT_BYTES = 4  # moments are float32 for any type of weights
FLOAT_BYTES = 4


def optimizer_bytes(optimizer: type[torch.optim.Optimizer], size: Sequence[int]) -> int:
    """Bytes of the moments of a shard of ``size`` (rows, columns)."""
    moments: dict[type[torch.optim.Optimizer], int] = {
        torch.optim.SGD: 0,
        RowWiseAdagrad: size[0],
        torch.optim.Adagrad: prod(size),
        torch.optim.Adam: 2 * prod(size),
        DenseAdam: 2 * prod(size),
    }
    return MOMENT_BYTES * moments[optimizer]


def shard_optimizer_bytes(option: ShardingOption, size: Sequence[int]) -> int:
    """Bytes of the moments of a shard of a table, for the optimizer that the table is marked with."""
    (optimizer,) = option.tensor._optimizer_classes  # the attribute with which TorchRec marks tables
    return optimizer_bytes(optimizer, size)


def shard_weight_bytes(option: ShardingOption, size: Sequence[int]) -> int:
    """Bytes of the weights of a shard of a table."""
    return prod(size) * int(option.tensor.element_size())


class StepPerf(Perf):
    """TorchRec's estimate, whose total, which planners minimise, also counts the time to send ids to their tables.

    TorchRec leaves this time out because pipelines overlap it with other work. But ids use the same wires as vectors.
    Without it, the ranks of a row-wise table would look idle although they get ids from every rank.
    """

    @cached_property
    def total(self) -> float:
        return float(super().total + self.input_dist_comms)

    def __add__(self, other: Perf) -> StepPerf:
        return StepPerf(
            self.fwd_compute + other.fwd_compute,
            self.fwd_comms + other.fwd_comms,
            self.bwd_compute + other.bwd_compute,
            self.bwd_comms + other.bwd_comms,
            self.input_dist_comms + other.input_dist_comms,
            self.prefetch_compute + other.prefetch_compute,
        )

    __radd__ = __add__  # a device's sum starts as TorchRec's Perf

    def __deepcopy__(self, memo: dict[int, Any]) -> StepPerf:
        return self  # nothing changes it


class PlannedShard(Shard):
    """A shard that is quick to copy and to hash, of which the planner does millions; only its rank ever changes."""

    @cached_property
    def _estimated(self) -> int:
        return hash((*self.size, *self.offset, self.storage, self.perf))

    def __hash__(self) -> int:
        return hash((self._estimated, self.rank))

    def __deepcopy__(self, memo: dict[int, Any]) -> PlannedShard:
        return copy(self)


class Enumerator(EmbeddingEnumerator):
    """TorchRec's enumerator, but deterministic, with exact bytes and with times of whole steps.

    TorchRec orders sharding types by a set of strings, so equally good plans differ from run to run; here the simpler
    way comes first. TorchRec also counts moments at the width of the weights, although they are float32, and does not
    know the listed classes of ids. And it counts every row that is looked up as an id that is sent, although a
    compositional table looks up several rows for an id.
    """

    def __init__(
        self, topology: Topology, batch_size: int, constraints: Mapping[str, TableConstraints], **options: Any
    ) -> None:
        super().__init__(topology, batch_size, constraints=dict(constraints), **options)
        self.topology, self.constraints = topology, constraints
        for device in topology.devices:
            device.perf = StepPerf(0.0, 0.0, 0.0, 0.0)  # the planner copies it for every proposal
        self.on_gpu = topology.compute_device == "cuda"

    def enumerate(self, module: nn.Module, sharders: list[ModuleSharder[nn.Module]]) -> list[ShardingOption]:
        """All ways to shard each table, table by table, the simplest way first."""
        by_table: dict[str, list[ShardingOption]] = {}
        for option in super().enumerate(module, sharders):
            by_table.setdefault(option.fqn, []).append(option)
        return [option for options in by_table.values() for option in sorted(options, key=simplicity)]

    def populate_estimates(self, sharding_options: list[ShardingOption]) -> None:
        """Set the storage and the time of every shard of every option; those of shards of one size are equal."""
        shards = [option.shards for option in sharding_options]
        for option in sharding_options:
            option.shards = list({tuple(shard.size): shard for shard in option.shards}.values())
        super().populate_estimates(sharding_options)
        for option, every in zip(sharding_options, shards, strict=True):
            known = {tuple(shard.size): self._estimates(option, shard) for shard in option.shards}
            option.shards = [PlannedShard(shard.size, shard.offset, *known[tuple(shard.size)]) for shard in every]

    def _estimates(self, option: ShardingOption, shard: Shard) -> tuple[Storage, StepPerf]:
        """TorchRec's estimates of a shard, with the bytes of moments, classes and maps of ids that it does not count.

        The times are all that a step takes.
        """
        assert shard.storage is not None
        assert shard.perf is not None
        uncounted = 1 - option.tensor.element_size() / MOMENT_BYTES
        missing = int(uncounted * shard_optimizer_bytes(option, shard.size))
        on_device = self.on_gpu and option.compute_kernel == "fused"
        storage = shard.storage + (Storage(hbm=missing, ddr=0) if on_device else Storage(hbm=0, ddr=missing))
        of_table = self.constraints[option.name]
        kept = of_table.listed_bytes + int(of_table.map_bytes_per_row * shard.size[0])
        storage += Storage(hbm=kept, ddr=0) if self.on_gpu else Storage(hbm=0, ddr=kept)
        return storage, self._as_sent(StepPerf(**vars(shard.perf)), option, shard)

    def _as_sent(self, perf: StepPerf, option: ShardingOption, shard: Shard) -> StepPerf:
        """The times with what the table really sends."""
        sent, by_rows = self.constraints[option.name], option.sharding_type in ROW_TYPES
        perf.fwd_compute *= (1 + sent.rows_per_id) / 2  # a lookup reads as many bytes as it writes
        perf.bwd_compute *= (1 + sent.rows_per_id) / 2
        if not (by_rows and sent.sends_rows):
            perf.input_dist_comms *= sent.ids_per_row
        if by_rows and sent.shared_rows:
            local = self.topology.local_world_size
            ranks = self.topology.world_size if option.sharding_type == "row_wise" else local
            bandwidth = self.topology.comms_bandwidths.get_bw(local, ranks, CollectiveType.ALL_REDUCE)
            milliseconds = sent.shared_rows * shard.size[1] * FLOAT_BYTES / bandwidth
            perf.fwd_comms += milliseconds
            perf.bwd_comms += milliseconds
        return perf


def simplicity(option: ShardingOption) -> tuple[int, int]:
    """The sort key of ways that are equally good: the simplest comes first."""
    return SHARDING_TYPES.index(option.sharding_type), KERNELS.index(option.compute_kernel)
