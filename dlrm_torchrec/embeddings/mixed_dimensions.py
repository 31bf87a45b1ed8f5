"""Mixed-dimension embeddings (arXiv 1909.11810): the more rows a table has, the fewer elements a row gets.

Each table has a matrix that maps its rows of dim d_i to the model's common dim. Pooling and this map are both linear,
so bags are pooled first: each bag then sends and multiplies only d_i numbers, whatever its length.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import (
    EmbeddingBagCollection,
    EmbeddingBagCollectionInterface,
    get_embedding_names_by_table,
)
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor


def power_rule_dims(
    rows: Sequence[int],
    *,
    base_dim: int,
    alpha: float,
    budget: int | None = None,
    round_to_power_of_two: bool = True,
    multiple_of: int = 4,
) -> list[int]:
    """The dim of each table by the power rule d_i = λ·n_i^-alpha; alpha 0 makes all dims equal, the paper uses 0.3.

    Without ``budget``, the table with the fewest rows gets ``base_dim``: λ = base_dim·min(n)^alpha. With ``budget``, λ
    is the largest value for which Σ n_i·d_i, the elements of all tables without their projections, is at most
    ``budget``. The paper's λ = budget / Σ n_i^(1-alpha) holds for exact dims; this one accounts for clipping and
    rounding.

    Dims are clipped to [``multiple_of``, ``base_dim``]. Dims below ``base_dim`` are rounded to the power of two with
    the nearest exponent, or without ``round_to_power_of_two`` to the nearest multiple of ``multiple_of``. The default
    is 4 because FBGEMM's fused tables (on CPU too) and column shards need a multiple of 4; a table of dim 1 or 2 could
    only be data-parallel.

    Args:
        rows: the number of rows n_i of each table
        base_dim: the largest dim, which the model sees for every table
        alpha: how fast the dim falls with the rows, from 0 (not at all) to 1
        budget: the most elements of all tables together; None lets ``base_dim`` and ``alpha`` decide
        round_to_power_of_two: False allows every multiple of ``multiple_of``
        multiple_of: the least dim, and the step between dims

    >>> power_rule_dims([10, 1_000, 10_000_000], base_dim=64, alpha=0.3)
    [64, 16, 4]
    >>> power_rule_dims([10, 1_000, 10_000_000], base_dim=64, alpha=0.3, budget=90_000_000)
    [64, 64, 8]
    """
    _check_rule(
        rows, base_dim=base_dim, alpha=alpha, round_to_power_of_two=round_to_power_of_two, multiple_of=multiple_of
    )
    fewest, most = min(rows), max(rows)

    def nearest(dim: float) -> int:
        if dim >= base_dim:
            return base_dim
        dim = max(dim, multiple_of)
        whole = 2 ** round(math.log2(dim)) if round_to_power_of_two else multiple_of * round(dim / multiple_of)
        return min(whole, base_dim)

    def dims(scale: float) -> list[int]:
        return [nearest(scale * base_dim * (fewest / n) ** alpha) for n in rows]

    def elements(scale: float) -> int:
        return sum(n * dim for n, dim in zip(rows, dims(scale), strict=True))

    if budget is None:
        return dims(1.0)
    low, high = multiple_of / base_dim, 2 * (most / fewest) ** alpha  # all tables at the least dim; all at base_dim
    if elements(low) > budget:
        raise ValueError(
            f"budget must hold all tables at the least dim, {multiple_of}: got {budget} elements; "
            f"raise it to {elements(low)} or use fewer rows"
        )
    if elements(high) <= budget:
        return dims(high)
    while low < (middle := math.sqrt(low * high)) < high:  # until they are neighbours in float64
        low, high = (middle, high) if elements(middle) <= budget else (low, middle)
    return dims(low)


def _check_rule(
    rows: Sequence[int], *, base_dim: int, alpha: float, round_to_power_of_two: bool, multiple_of: int
) -> None:
    if min(rows, default=0) < 1:
        raise ValueError(f"rows must be at least 1 for every table: got {list(rows)}; give each table's rows")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must lie between 0 and 1: got {alpha}; try 0.3")
    if multiple_of < 1 or (round_to_power_of_two and multiple_of & (multiple_of - 1)):
        raise ValueError(
            f"multiple_of must be positive, and a power of two if dims are rounded to such: got {multiple_of}; use 4"
        )
    if base_dim < 1 or base_dim % multiple_of:
        raise ValueError(
            f"base_dim must be a positive multiple of {multiple_of}: got {base_dim}; "
            "choose such a dim, or change multiple_of"
        )


class MixedDimensionEmbeddingBagCollection(EmbeddingBagCollectionInterface):
    """An EmbeddingBagCollection whose tables have different dims and whose outputs all have ``embedding_dim``.

    ``tables`` holds the tables at their own dims; it is planned, sharded and trained in backward like any
    EmbeddingBagCollection. ``projections`` is dense and replicated.
    """

    def __init__(
        self,
        tables: Sequence[EmbeddingBagConfig],
        embedding_dim: int,
        *,
        is_weighted: bool = False,
        device: torch.device | None = None,
        dense_device: torch.device | None = None,
    ) -> None:
        """Creates the tables and the projections; raises ValueError when a table is wider than ``embedding_dim``.

        Args:
            tables: the tables at their own dims, each from 1 to ``embedding_dim``
            embedding_dim: the dim of every output
            is_weighted: whether ids have weights
            device: the device of the tables; on meta they get memory when they are sharded
            dense_device: the device of the projections
        """
        super().__init__()
        for table in tables:
            if not 1 <= table.embedding_dim <= embedding_dim:
                raise ValueError(
                    f"dim of table {table.name!r} must lie between 1 and the common dim {embedding_dim}: "
                    f"got {table.embedding_dim}; lower it, or raise embedding_dim"
                )
        self.tables = EmbeddingBagCollection([replace(table) for table in tables], is_weighted, device)
        own = self.tables.embedding_bag_configs()
        self.projections = Projections(own, embedding_dim, dense_device)
        self._configs = [replace(table, embedding_dim=embedding_dim) for table in own]
        self._is_weighted = is_weighted

    def forward(self, features: KeyedJaggedTensor) -> KeyedTensor:
        """Pooled vectors (B, ``embedding_dim``) of each feature, keyed and ordered as in an EmbeddingBagCollection."""
        return self.projections(self.tables(features))  # the pipelines' tracer can follow only these two calls

    def embedding_bag_configs(self) -> list[EmbeddingBagConfig]:
        """The tables as a model sees them: all of dim ``embedding_dim``."""
        return self._configs

    def is_weighted(self) -> bool:
        return self._is_weighted


class Projections(nn.ModuleDict):
    """Maps pooled vectors of the tables' own dims to vectors of dim ``embedding_dim``.

    Each table that is narrower has one matrix without bias. The elements of a table start as U(-√(1/n), √(1/n)), with
    mean 0 and variance 1/(3n). Those of its matrix start as U(-√(3/d), √(3/d)), with variance 1/d, so that a projected
    vector, a sum of d products, has the same mean and variance. The xavier_uniform of the paper's code would make the
    variance smaller.
    """

    def __init__(
        self, tables: Sequence[EmbeddingBagConfig], embedding_dim: int, device: torch.device | None = None
    ) -> None:
        super().__init__()
        self.embedding_dim = embedding_dim
        names = get_embedding_names_by_table(list(tables))
        self.table_of = {key: table.name for table, keys in zip(tables, names, strict=True) for key in keys}
        for table in tables:
            if table.embedding_dim < embedding_dim:
                matrix = nn.Linear(table.embedding_dim, embedding_dim, bias=False, device=device)
                limit = math.sqrt(3 / table.embedding_dim)
                nn.init.uniform_(matrix.weight, -limit, limit)
                self[table.name] = matrix

    def forward(self, pooled: KeyedTensor) -> KeyedTensor:
        """A KeyedTensor in the tables' order; the order of ``pooled`` depends on the sharding plan."""
        own = pooled.to_dict()
        common = [self[table](own[key]) if table in self else own[key] for key, table in self.table_of.items()]
        return KeyedTensor(
            keys=list(self.table_of),
            length_per_key=[self.embedding_dim] * len(common),
            values=torch.cat(common, dim=1),
        )
