"""What may be set of embedding tables. No torch, so that ``--help`` is quick."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

TablesKind = Literal[
    "plain",
    "hash",
    "quotient_remainder",
    "mixed_radix",
    "chinese_remainder",
    "hot_cold",
    "hashes",
    "clusters",
    "mixed_dimension",
    "managed",
]
Policy = Literal["lru", "lfu", "distance"]
Tail = Literal["hash", "hashes", "chinese_remainder"]
OperationName = Literal["auto", "concat", "add", "mult", "path", "tensor_train", "feature_generation"]
DataTypeName = Literal["fp32", "fp16"]
TableFormat = Literal["safetensors", "parquet"]  # of files of single tables


@dataclass(frozen=True, kw_only=True)
class TablesConfig:
    """How tables are stored: plain, composed of smaller ones (arXiv 1909.02107), or of mixed dims (1909.11810)."""

    kind: TablesKind = "plain"
    """How an id finds its rows; plain gives every id a row of its own, hot_cold only the most frequent ids."""
    operation: OperationName = "auto"
    """How the rows of an id become its vector; auto means add for hashes and clusters, else mult."""
    collisions: int = 4
    """Ids that share a row of the largest partition; 0 chooses the partitions with the fewest rows in all."""
    max_rows: int = 0
    """Maximum stored rows of a table, which overrides 'collisions'; 0 means no limit."""
    partitions: int = 2
    """Partitions of mixed_radix and chinese_remainder tables, and hashes; 0 means as few as max_rows allows."""
    hot: float = 0.5
    """Share of the rows of a hot_cold table that its most frequent ids keep for themselves."""
    tail: Tail = "chinese_remainder"
    """How the other ids of a hot_cold table find their rows; chinese_remainder tells them apart, hash does not."""
    threshold: int = 200
    """Tables of at most this many rows stay plain."""
    hidden: int = 64
    """Hidden units of the path operation's networks; 0 makes them linear."""
    rank: int = 4
    """Rank of the tensor_train operation's cores, from three partitions on; max_rows may lower it."""
    policy: Policy = "distance"
    """Which id of a full managed table gives up its row: seen longest ago, least often, or of both (distance)."""
    admit_after: int = 1
    """Sightings between two updates of a managed table after which an id gets a row; 1 means at once."""
    update_every: int = 20
    """Steps between two updates of managed tables, at which ids get rows and lose them."""
    max_age: int = 0
    """Steps without a sighting after which an id of a managed table loses its row; 0 means never."""
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
    assignments: str = ""
    """A folder written by recipes/cluster_tables.py, with the classes of ids of clusters tables; empty means none."""
    frequent: str = ""
    """A file with the frequent ids of hot_cold tables whose ids are in no order, as hashed ones; empty means none."""

    def __post_init__(self) -> None:
        for name, value, choices in (
            ("kind", self.kind, get_args(TablesKind)),
            ("operation", self.operation, get_args(OperationName)),
            ("tail", self.tail, get_args(Tail)),
            ("policy", self.policy, get_args(Policy)),
            ("data_type", self.data_type, get_args(DataTypeName)),
        ):
            if value not in choices:
                raise ValueError(f"{name} of tables must be one of {choices}: got {value!r}; name one of them")
        least = int(self.kind in ("hash", "hot_cold", "hashes", "managed") and not self.max_rows)
        if self.collisions < least:
            raise ValueError(f"collisions of {self.kind} tables must be at least {least}: got {self.collisions}; try 4")
        if self.max_rows < 0 or (self.max_rows and self.kind in ("plain", "clusters", "mixed_dimension")):
            raise ValueError(
                f"max_rows must be 0 or more, and is for tables whose ids share rows by a rule: got {self.max_rows} "
                f"for {self.kind}; leave it out"
            )
        if self.partitions < (self.kind == "hashes"):
            raise ValueError(
                f"partitions of {self.kind} tables must be at least {int(self.kind == 'hashes')}: got "
                f"{self.partitions}; try 2"
            )
        if not 0 < self.hot < 1:
            raise ValueError(f"hot must be a share between 0 and 1: got {self.hot}; try .5")
        several: tuple[str, ...] = ("add", "concat") if self.kind == "hashes" else ()
        if self.kind == "hot_cold" and self.tail == "hashes":
            several = ("concat",)
        if several and self.combination not in several:
            raise ValueError(
                f"operation of several hashes must be {' or '.join(several)}, because they read the same rows: got "
                f"{self.operation!r}; change it"
            )
        if self.kind == "hot_cold" and self.operation == "tensor_train":
            raise ValueError(
                "operation of hot_cold tables must be no tensor_train, whose rows already are those of frequent ids "
                "first: got 'tensor_train'; use mixed_radix tables, or mult"
            )
        if self.kind == "clusters" and not self.assignments:
            raise ValueError(
                "clusters tables must have assignments: got none; name the folder that recipes/cluster_tables.py wrote"
            )
        if self.assignments and self.kind != "clusters" and not self.file:
            raise ValueError(
                f"assignments must be for clusters tables: got {self.assignments!r} for {self.kind}; set kind to "
                "clusters, or leave them out"
            )
        if self.budget < 0 or (self.budget and self.kind != "mixed_dimension"):
            raise ValueError(
                f"budget must be 0 or more, and is for mixed_dimension tables: got {self.budget} for {self.kind}; "
                "use collisions or max_rows"
            )
        if self.admit_after < 1 or self.update_every < 1 or self.max_age < 0:
            raise ValueError(
                "admit_after and update_every must be at least 1, and max_age at least 0: got "
                f"{self.admit_after}, {self.update_every} and {self.max_age}; raise them"
            )
        if self.file and self.kind == "mixed_dimension":
            raise ValueError(
                f"a file of single tables must not be given for mixed_dimension, whose dims depend on each other: "
                f"got {self.file!r}; leave one of them out"
            )

    @property
    def combination(self) -> OperationName:
        """The operation, where auto is decided."""
        if self.operation != "auto":
            return self.operation
        if self.kind == "hot_cold" and self.tail == "hashes":
            return "concat"
        return "add" if self.kind in ("hashes", "clusters") else "mult"

    @property
    def identity(self) -> dict[str, Any]:
        """What must stay equal when a run is resumed: listed ids and codes may move, but not change."""
        settings = asdict(self)
        if self.assignments:
            from dlrm_torchrec.embeddings.assignments import digests  # needs torch

            settings["assignments"] = digests(self.assignments)
        if self.frequent:
            from dlrm_torchrec.embeddings.frequent_ids import file_digest  # likewise

            settings["frequent"] = file_digest(self.frequent)
        return settings
