"""What may be set of embedding tables. No torch, so that ``--help`` is quick."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

TablesKind = Literal["plain", "hash", "quotient_remainder", "mixed_radix", "chinese_remainder", "mixed_dimension"]
OperationName = Literal["concat", "add", "mult", "path", "feature_generation"]
DataTypeName = Literal["fp32", "fp16"]
TableFormat = Literal["safetensors", "parquet"]  # of files of single tables


@dataclass(frozen=True, kw_only=True)
class TablesConfig:
    """How tables are stored: plain, composed of smaller ones (arXiv 1909.02107), or of mixed dims (1909.11810)."""

    kind: TablesKind = "plain"
    """How an id finds its rows; plain gives every id a row of its own."""
    operation: OperationName = "mult"
    """How the rows of an id become its vector; plain, hash and mixed_dimension tables do not use it."""
    collisions: int = 4
    """Ids that share a row of the largest partition; 0 chooses the partitions with the fewest rows in all."""
    max_rows: int = 0
    """Maximum stored rows of a quotient_remainder table; overrides 'collisions'; 0 means no limit."""
    partitions: int = 2
    """Number of partitions of mixed_radix and chinese_remainder tables."""
    threshold: int = 200
    """Tables of at most this many rows stay plain."""
    hidden: int = 64
    """Hidden units of the path operation's networks; 0 makes them linear."""
    alpha: float = 0.3
    """Power of the rows by which the dim of a mixed_dimension table falls."""
    budget: int = 0
    """Maximum elements of the mixed_dimension tables above the threshold; 0 means what alpha gives."""
    data_type: DataTypeName = "fp32"
    """Number format of the weights; the optimizer's moments are always fp32."""
    file: str = ""
    """A file written by recipes/plan_sharding.py --fit, with settings of single tables; empty means none."""
    pretrained: str = ""
    """A folder written by recipes/export_tables.py, whose tables the run begins with; empty means random weights."""

    def __post_init__(self) -> None:
        for name, value, choices in (
            ("kind", self.kind, get_args(TablesKind)),
            ("operation", self.operation, get_args(OperationName)),
            ("data_type", self.data_type, get_args(DataTypeName)),
        ):
            if value not in choices:
                raise ValueError(f"{name} of tables must be one of {choices}: got {value!r}; name one of them")
        if self.collisions < 0 or (self.kind == "hash" and self.collisions == 0):
            raise ValueError(
                f"collisions of {self.kind} tables must be at least {int(self.kind == 'hash')}: got "
                f"{self.collisions}; try 4"
            )
        if self.max_rows < 0 or (self.max_rows and self.kind != "quotient_remainder"):
            raise ValueError(
                f"max_rows must be 0 or more, and is for quotient_remainder tables: got {self.max_rows} for "
                f"{self.kind}; use collisions"
            )
        if self.budget < 0 or (self.budget and self.kind != "mixed_dimension"):
            raise ValueError(
                f"budget must be 0 or more, and is for mixed_dimension tables: got {self.budget} for {self.kind}; "
                "use collisions or max_rows"
            )
        if self.file and self.kind == "mixed_dimension":
            raise ValueError(
                f"a file of single tables must not be given for mixed_dimension, whose dims depend on each other: "
                f"got {self.file!r}; leave one of them out"
            )
