"""Plans of a training recipe for machines that you do not have, and the smallest changes if it does not fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import Field, dataclass, replace
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

import torch
from torch import nn

from dlrm_torchrec.embeddings.config import TablesConfig
from dlrm_torchrec.embeddings.tables import Tables, model_configs
from dlrm_torchrec.schema import AccessStatistics, DatasetSpec, Table
from dlrm_torchrec.sharding.cluster.topology import Cluster
from dlrm_torchrec.sharding.config import ShardingConfig
from dlrm_torchrec.sharding.estimate.estimate import Estimate
from dlrm_torchrec.sharding.estimate.planner_stats import EstimateStats
from dlrm_torchrec.sharding.modules.sharder import table_optimizer
from dlrm_torchrec.sharding.node_local import OF_THE_WORLD
from dlrm_torchrec.sharding.plan import activation_bytes, make_plan
from dlrm_torchrec.sharding.planner.fit import Choice, best, choices, fit
from dlrm_torchrec.sharding.planner.shortfall import DoesNotFitError

MOST_RANKS = 128


class PlannedOptimizer(Protocol):
    """The part of a table optimizer's config that a plan depends on."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def kind(self) -> str: ...


class PlannedConfig(Protocol):
    """The part of a training recipe's config that a plan depends on."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def batch_size(self) -> int: ...
    @property
    def tables(self) -> TablesConfig: ...
    @property
    def sparse(self) -> PlannedOptimizer: ...
    @property
    def sharding(self) -> ShardingConfig: ...


@runtime_checkable
class NodeLocalConfig(Protocol):
    """The config of a recipe in which every ``node_size`` ranks learn their own tables."""

    @property
    def node_size(self) -> int: ...


Config = TypeVar("Config", bound=PlannedConfig)
Build = Callable[[Any, DatasetSpec, int, torch.device], tuple[nn.Module, Tables]]


@dataclass(frozen=True)
class DryRun:
    """Plans the model that a recipe's ``build`` makes for ``spec``, with the same functions as training."""

    build: Build
    spec: DatasetSpec
    access: Mapping[str, AccessStatistics]  # by feature; only features that were measured

    def __call__(self, config: PlannedConfig, cluster: Cluster, name: str = "") -> Estimate:
        """The estimates of the plan of a recipe's ``config`` for ``cluster``; ``name`` replaces the cluster's name.

        If each node learns its own tables, this is the plan of one node. Raises DoesNotFitError when no plan fits.
        """
        if config.batch_size < cluster.world_size:
            raise ValueError(
                f"batch_size must be at least one row for each of {cluster.world_size:,} ranks: got "
                f"{config.batch_size:,}; raise it, or plan for fewer ranks"
            )
        model, tables = self.build(config, self.spec, cluster.world_size, torch.device("cpu"))
        ranks = config.node_size if isinstance(config, NodeLocalConfig) else cluster.world_size
        alone = ranks < cluster.world_size
        share = config.batch_size // cluster.world_size
        stats = EstimateStats((name or str(cluster)) + (f", a node of {ranks}" if alone else ""))
        make_plan(
            model,
            tables,
            cluster.node(ranks).topology(),
            config.sharding,
            batch_size=share,
            spec=self.spec,
            stats=stats,
            access=self.access,
            without=OF_THE_WORLD if alone else (),
        )
        assert stats.estimate is not None
        return replace(stats.estimate, activation_bytes=activation_bytes(model, share))

    def fit(
        self, config: PlannedConfig, cluster: Cluster, attempt: Callable[[dict[str, Choice]], Estimate], budget: int = 0
    ) -> tuple[dict[str, Choice], Estimate]:
        """How to store each table of a recipe's ``config`` with the least loss so that it fits, and the plan.

        Raises ValueError when even the smallest choices need more than the budget, and DoesNotFitError when even they
        cannot be planned.

        Args:
            config: the recipe's config; its tables say which kind and operation compressed tables have
            cluster: the machines to fit
            attempt: plans choices, by table name, or raises DoesNotFitError
            budget: the most bytes of weights and moments; 0 means all the memory that the cluster has for tables
        """
        plain = self.build(replace(config, tables=TablesConfig()), self.spec, 1, torch.device("cpu"))[1]
        optimizer, pooling = table_optimizer(plain), {each.name: each.pooling_factor for each in self.spec.sparse}
        ways = {}
        for stored in model_configs(plain):
            name, features = stored.name, tuple(stored.feature_names)
            table = Table(name=name, rows=stored.num_embeddings, dim=stored.embedding_dim, features=features)
            looked_up = sum(pooling[feature] for feature in features)
            access = self.access.get(features[0]) if len(features) == 1 else None
            ways[name] = choices(table, config.tables, optimizer, pooling_factor=looked_up, access=access)
        if not budget:
            return fit(ways, attempt, cluster.world_size * cluster.machine.table_bytes)
        chosen = best(ways, budget)
        if chosen is None:
            least = sum(min(choice.bytes for choice in each) for each in ways.values())
            raise ValueError(f"bytes to fit must be at least {least:,} for these tables: got {budget:,}; raise them")
        return chosen, attempt(chosen)

    def nearest(self, config: PlannedConfig, cluster: Cluster) -> Iterator[str]:
        """Single changes that make ``config`` fit ``cluster``, as text; each of them was planned."""
        changes: list[tuple[str, Iterator[tuple[str, PlannedConfig, Cluster]]]] = [
            ("more ranks", _more_ranks(config, cluster)),
            ("a smaller batch", _smaller_batches(config, cluster, counted=self._counts_activations(config))),
            ("a smaller optimizer", _smaller_optimizer(config, cluster)),
            ("weights of half the bytes", _half_precision(config, cluster)),
            ("the host's memory", _host_memory(config, cluster)),
            ("compression", _compressed(config, cluster)),
        ]
        for what, attempts in changes:
            for options, changed, machines in attempts:
                try:
                    estimate = self(changed, machines)
                except DoesNotFitError:
                    continue
                yield f"{what} ({options}): {_headline(estimate)}"
                break

    def _counts_activations(self, config: PlannedConfig) -> bool:
        """Whether a plan counts activations of the model, of which a smaller batch has fewer."""
        return activation_bytes(self.build(config, self.spec, 1, torch.device("cpu"))[0], 1) > 0


def _headline(estimate: Estimate) -> str:
    used, capacity = max(
        zip(estimate.used_bytes(estimate.memory), estimate.capacity(estimate.memory), strict=True),
        key=lambda each: each[0],
    )
    milliseconds = sum(estimate.rank_milliseconds()[estimate.critical_rank()].values())
    return f"{used / 1e9:.2f} of {capacity / 1e9:.1f} GB on the fullest rank, {milliseconds:.3g} ms on the slowest"


def _more_ranks(config: Config, cluster: Cluster) -> Iterator[tuple[str, Config, Cluster]]:
    devices, hosts = cluster.devices_per_host, cluster.hosts
    while True:
        if devices < cluster.machine.devices_per_host:
            devices = min(2 * devices, cluster.machine.devices_per_host)
        else:
            hosts *= 2
        larger = Cluster(cluster.machine, hosts, devices)
        if larger.world_size > MOST_RANKS:
            return
        if config.batch_size % larger.world_size == 0:
            yield f"--topology {larger}", config, larger


def _smaller_batches(config: Config, cluster: Cluster, *, counted: bool) -> Iterator[tuple[str, Config, Cluster]]:
    batch_size = config.batch_size // 2 if counted else 0
    while batch_size >= cluster.world_size and batch_size % cluster.world_size == 0:
        yield f"--batch-size {batch_size}", replace(config, batch_size=batch_size), cluster
        batch_size //= 2


def _smaller_optimizer(config: Config, cluster: Cluster) -> Iterator[tuple[str, Config, Cluster]]:
    if config.sparse.kind in ("adagrad", "adam"):
        yield (
            "--sparse.kind rowwise_adagrad",
            replace(config, sparse=replace(config.sparse, kind="rowwise_adagrad")),
            cluster,
        )


def _half_precision(config: Config, cluster: Cluster) -> Iterator[tuple[str, Config, Cluster]]:
    if config.tables.data_type == "fp32":
        half = replace(config, tables=replace(config.tables, data_type="fp16"))
        yield "--tables.data-type fp16", half, cluster
        for options, smaller, _ in _smaller_optimizer(half, cluster):
            yield f"--tables.data-type fp16 {options}", smaller, cluster


def _host_memory(config: Config, cluster: Cluster) -> Iterator[tuple[str, Config, Cluster]]:
    if cluster.machine.compute_device == "cuda" and not config.sharding.host_memory:
        yield "--sharding.host-memory", replace(config, sharding=replace(config.sharding, host_memory=True)), cluster


def _compressed(config: Config, cluster: Cluster) -> Iterator[tuple[str, Config, Cluster]]:
    if config.tables.kind == "plain" and not config.tables.file:
        for power in range(1, 11):
            tables = TablesConfig(kind="quotient_remainder", collisions=2**power, data_type=config.tables.data_type)
            options = f"--tables.kind quotient_remainder --tables.collisions {2**power}"
            yield f"{options}, or --fit, which loses less", replace(config, tables=tables), cluster
