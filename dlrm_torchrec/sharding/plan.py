"""One plan for training and dry runs: which rank holds which piece of which table."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch.distributed as dist
from torch import nn
from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
from torchrec.distributed.planner.storage_reservations import HeuristicalStorageReservation
from torchrec.distributed.planner.types import ParameterConstraints, PlannerError, Stats
from torchrec.distributed.types import ModuleSharder, ShardingPlan

from dlrm_torchrec.embeddings.tables import physical_configs
from dlrm_torchrec.schema import AccessStatistics, DatasetSpec
from dlrm_torchrec.sharding.adopt import adopt_plan
from dlrm_torchrec.sharding.cluster.topology import whose_bandwidths
from dlrm_torchrec.sharding.config import ShardingConfig
from dlrm_torchrec.sharding.modules.comms import check_widths, codecs, row_dim
from dlrm_torchrec.sharding.modules.compositional import CompositionalEmbeddingBagCollectionSharder
from dlrm_torchrec.sharding.modules.managed.sharded import ManagedEmbeddingBagCollectionSharder
from dlrm_torchrec.sharding.modules.sequences.sharded import CompositionalEmbeddingCollectionSharder, SequenceSharder
from dlrm_torchrec.sharding.modules.sharder import ExactSharder, table_optimizer
from dlrm_torchrec.sharding.plan_description import shard_widths
from dlrm_torchrec.sharding.planner.constraints import table_constraints
from dlrm_torchrec.sharding.planner.enumerator import Enumerator
from dlrm_torchrec.sharding.planner.local_search import LocalSearch
from dlrm_torchrec.sharding.planner.shortfall import DoesNotFitError, shortfall


@dataclass
class Plan(ShardingPlan):
    """A plan together with the sharders that it was made with: other sharders would train another plan."""

    sharders: list[ModuleSharder[nn.Module]] = field(repr=False, compare=False)
    bandwidths: str = field(default="", compare=False)  # whose the planner took, for people; empty: nothing to say


SHARDERS = (
    ExactSharder,
    CompositionalEmbeddingBagCollectionSharder,
    ManagedEmbeddingBagCollectionSharder,
    SequenceSharder,
    CompositionalEmbeddingCollectionSharder,
)


def _sharders(tables: nn.Module, config: ShardingConfig, *, sorted_updates: bool) -> list[ModuleSharder[nn.Module]]:
    optimizer, registry = table_optimizer(tables), codecs(config.comms, _dims(tables))
    return [sharder(optimizer, registry, sorted_updates=sorted_updates) for sharder in SHARDERS]


def _dims(tables: nn.Module) -> list[int]:
    return [table.embedding_dim for table in physical_configs(tables)]


def make_plan(
    model: nn.Module,
    tables: nn.Module,
    topology: Topology,
    config: ShardingConfig,
    *,
    batch_size: int,
    spec: DatasetSpec,
    group: dist.ProcessGroup | None = None,
    stats: Stats | None = None,
    access: Mapping[str, AccessStatistics] | None = None,
    without: Sequence[str] = (),
    speed: Sequence[str] = (),
) -> Plan:
    """The planner's plan for ``tables`` inside ``model``, or a saved plan.

    Raises ValueError when ``config`` names a table that does not exist or a sharding type that is impossible for a
    table, and DoesNotFitError when no plan fits the memory.

    Args:
        model: the model that contains ``tables``; its dense parameters are counted too
        tables: the tables to shard, on the meta device: a collection, or a module that contains all collections
        topology: the ranks, their memory and their bandwidths
        config: the sharding types that the user asks for, or a saved plan
        batch_size: rows per rank
        spec: the data set; it gives the pooling factors of the features
        group: its rank 0 plans and all its ranks get the same plan; without a group, each process plans for itself
        stats: gets the estimates of the plan
        access: measured accesses by feature, which tell how well tables in the host's memory can be cached
        without: sharding types that must not be used
        speed: the parts of the run's fast path; with ``sorted``, float32 tables on CPU are updated over sorted ids
    """
    ways = _sharders(tables, config, sorted_updates="sorted" in speed)
    constraints = table_constraints(
        tables, topology, config, spec=spec, batch_size=batch_size, access=access or {}, without=without
    )
    if config.plan:
        plan = adopt_plan(config.plan, model, ways, topology, batch_size=batch_size, constraints=constraints)
    else:
        plan = _search(model, ways, topology, batch_size=batch_size, constraints=constraints, group=group, stats=stats)
    if config.comms.int8:
        check_widths(shard_widths(plan), row_dim(_dims(tables)))
    return Plan(plan.plan, ways, "" if config.plan else whose_bandwidths(topology))


def _search(
    model: nn.Module,
    ways: list[ModuleSharder[nn.Module]],
    topology: Topology,
    *,
    batch_size: int,
    constraints: dict[str, ParameterConstraints],
    group: dist.ProcessGroup | None,
    stats: Stats | None,
) -> ShardingPlan:
    enumerator = Enumerator(topology, batch_size, constraints=constraints)
    reservation = _reservation(model, activation_bytes(model, batch_size))
    planner = EmbeddingShardingPlanner(
        topology=topology,
        batch_size=batch_size,
        enumerator=enumerator,
        constraints=constraints,
        storage_reservation=reservation,
        proposer=LocalSearch(),
        stats=[stats] if stats else [],
        debug=False,
    )
    try:
        return planner.plan(model, ways) if group is None else planner.collective_plan(model, ways, group)
    except PlannerError as error:
        left = reservation.reserve(topology, batch_size, model, ways, constraints)
        raise DoesNotFitError(
            f"tables must fit the memory of {topology.world_size} {topology.compute_device} ranks: got "
            f"{shortfall(enumerator.enumerate(model, ways), left)}; add ranks, or shrink tables"
        ) from error


@runtime_checkable
class CountsActivations(Protocol):
    """A module whose activations are too large for the margin that every plan leaves."""

    def activation_bytes(self, num_samples: int) -> int:
        """Bytes that it holds at most in one step of a rank with so many samples."""


def activation_bytes(model: nn.Module, batch_size: int) -> int:
    """Bytes of the activations of those modules of ``model`` that count them, in a step of ``batch_size`` samples."""
    return sum(
        module.activation_bytes(batch_size) for module in model.modules() if isinstance(module, CountsActivations)
    )


def _reservation(model: nn.Module, activations: int) -> HeuristicalStorageReservation:
    """Reserves 15 % of the memory, and room for dense parameters, their gradients, two moments and activations."""
    dense_bytes = 4 * sum(p.numel() * p.element_size() for p in model.parameters() if not p.is_meta) + activations
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # it warns about a missing estimate, which is given here
        return HeuristicalStorageReservation(percentage=0.15, dense_tensor_estimate=dense_bytes)
