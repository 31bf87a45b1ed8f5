"""What a model is made of before its first step: parameters, bytes, multiply-adds and bytes moved, part by part."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from torch import nn
from torchrec.models.dlrm import DLRM
from torchrec.modules.embedding_configs import DATA_TYPE_NUM_BITS
from torchrec.modules.embedding_modules import get_embedding_names_by_table

from dlrm_torchrec.embeddings.tables import model_configs, physical_configs
from dlrm_torchrec.models.costs import Cost, Sample, cost
from dlrm_torchrec.schema import DatasetSpec
from dlrm_torchrec.table_names import table_of

TABLES = "tables"
NAMES = {"dense_arch": "bottom MLP", "inter_arch": "interaction", "over_arch": "top MLP"}  # of the parts of a DLRM
MOMENT_BYTES = 4
# Moments that an optimizer keeps for each element of a parameter.
PER_ELEMENT = {"adagrad": 1, "adam": 2, "dense_adam": 2}
PER_ROW = {"rowwise_adagrad": 1}


@dataclass(frozen=True, kw_only=True)
class Part:
    """One part of a model; multiply-adds and bytes moved are those of one sample in the forward pass."""

    name: str
    parameters: int
    weight_bytes: int
    moment_bytes: int  # of the optimizer
    multiply_adds: float
    moved_bytes: float


@dataclass(frozen=True, kw_only=True)
class ModelSummary:
    """The parts of a model; its text is a table for a terminal."""

    parts: list[Part]
    tables: dict[str, dict[str, Any]]  # rows, dim and bytes of an element of each stored table
    uncounted: list[str]  # classes of modules whose multiply-adds are not counted

    def __str__(self) -> str:
        width = max(len(part.name) for part in self.parts)
        lines = [
            f"{'part':<{width}}  {'parameters':>17}  {'weights':>12}  {'moments':>12}  {'multiply-adds':>14}  "
            f"{'bytes moved':>12}  per sample"
        ]
        lines += [
            f"{part.name:<{width}}  {part.parameters:>17,}  {_size(part.weight_bytes):>12}  "
            f"{_size(part.moment_bytes):>12}  {part.multiply_adds:>14,.0f}  {part.moved_bytes:>12,.0f}"
            for part in [*self.parts, self._total()]
        ]
        return "\n".join([*lines, self._sentence()])

    def _total(self) -> Part:
        sums = {
            name: sum(asdict(part)[name] for part in self.parts) for name in asdict(self.parts[0]) if name != "name"
        }
        return Part(name="all", **sums)

    def _sentence(self) -> str:
        total, held = self._total(), next(part for part in self.parts if part.name == TABLES)
        work = 1 - held.multiply_adds / total.multiply_adds
        uncounted = f"; not counted: {', '.join(self.uncounted)}" if self.uncounted else ""
        return (
            f"tables hold {held.parameters / total.parameters:.1%} of the parameters, and the other parts do "
            f"{work:.1%} of the multiply-adds{uncounted}"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain dictionaries and lists."""
        return asdict(self)


def describe_model(model: nn.Module, tables: nn.Module, spec: DatasetSpec, *, sparse: str, dense: str) -> ModelSummary:
    """The parts of ``model``, which are its named children, before its tables are sharded; they may be on meta.

    Args:
        model: the model, or a task around it
        tables: its tables: a collection, or a module that contains all collections
        spec: the data set, whose pooling factors are the ids of a sample
        sparse: the kind of the tables' optimizer
        dense: the kind of the other parameters' optimizer
    """
    while len(children := dict(model.named_children())) == 1:
        (model,) = children.values()
    seen = model_configs(tables)
    sample = Sample(
        dim=seen[0].embedding_dim,
        vectors=sum(map(len, get_embedding_names_by_table(seen))),
        dense=len(spec.dense),
        ids={feature.name: feature.pooling_factor for feature in spec.sparse},
    )
    costs = {name: cost(child, sample) for name, child in children.items()}
    named = NAMES if isinstance(model, DLRM) else {}
    parts = []
    for name, child in children.items():
        holds_tables = bool(model_configs(child))
        title = TABLES if holds_tables else named.get(name, name)
        parts.append(_part(title, child, costs[name], sparse=sparse, dense=dense))
    stored = {
        config.name: {
            "rows": config.num_embeddings,
            "dim": config.embedding_dim,
            "element_bytes": DATA_TYPE_NUM_BITS[config.data_type] / 8,
        }
        for config in physical_configs(tables)
    }
    uncounted = frozenset[str]().union(*(each.uncounted for each in costs.values()))
    return ModelSummary(parts=parts, tables=stored, uncounted=sorted(uncounted))


def _part(name: str, module: nn.Module, of_sample: Cost, *, sparse: str, dense: str) -> Part:
    moments = 0
    for own, parameter in module.named_parameters():
        kind = sparse if table_of(own) else dense
        rows = parameter.numel() // max(1, parameter.shape[-1])
        moments += PER_ELEMENT.get(kind, 0) * parameter.numel() + PER_ROW.get(kind, 0) * rows
    return Part(
        name=name,
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        weight_bytes=sum(parameter.numel() * parameter.element_size() for parameter in module.parameters()),
        moment_bytes=MOMENT_BYTES * moments,
        multiply_adds=of_sample.multiply_adds,
        moved_bytes=of_sample.moved_bytes,
    )


def _size(count: float) -> str:
    """Bytes with a unit; 1 MB is 10**6 bytes.

    >>> _size(999), _size(1_622_400), _size(96_000_000_000)
    ('999 B', '1.6 MB', '96.0 GB')
    """
    unit, scale = next(((u, s) for u, s in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)) if count >= s), ("B", 1))
    return f"{count / scale:,.1f} {unit}" if scale > 1 else f"{count:,.0f} B"
