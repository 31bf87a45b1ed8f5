"""What may be set of sharding: who holds which table, and how vectors travel. No torch, so that ``--help`` is quick."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal, get_args

from tyro.conf import arg

# Simplest first
ShardingType = Literal[
    "data_parallel",
    "table_wise",
    "column_wise",
    "table_column_wise",
    "row_wise",
    "table_row_wise",
    "grid_shard",
]
ShardingKind = Literal["auto", ShardingType]
Precision = Literal["fp32", "fp16", "bf16", "int8"]


@dataclass(frozen=True, kw_only=True)
class CommsConfig:
    """The number format of vectors between ranks; ids and dense gradients are sent as they are."""

    forward: Precision = "fp32"
    """Format of looked-up vectors; int8 adds a scale and an offset, 8 bytes, to every 32 numbers."""
    backward: Precision = "fp32"
    """Format of the vectors' gradients."""

    def __post_init__(self) -> None:
        for name in (self.forward, self.backward):
            if name not in get_args(Precision):
                raise ValueError(f"precision of comms must be one of {get_args(Precision)}: got {name!r}; name one")

    @property
    def int8(self) -> bool:
        return "int8" in (self.forward, self.backward)


@dataclass(frozen=True, kw_only=True)
class ShardingConfig:
    """Which rank holds which piece of which table."""

    kind: ShardingKind = "auto"
    """Sharding type of every table; auto lets the planner choose for each."""
    tables: dict[str, ShardingKind] = field(default_factory=dict)
    """Sharding types of single tables, as pairs of a table's name and its type; they override 'kind'."""
    plan: Annotated[str, arg(aliases=["--plan"])] = ""
    """A plan file written by recipes/plan_sharding.py, used as it is; empty means a new plan."""
    host_memory: bool = False
    """Let plain tables of GPUs lie in the host's memory, with a cache on the device."""
    comms: CommsConfig = CommsConfig()
    """The number format of vectors between ranks."""

    def of(self, table: str) -> ShardingKind:
        """The sharding type wanted for ``table``."""
        return self.tables.get(table, self.kind)
