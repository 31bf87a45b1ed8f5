"""Tables that give a vector for each id, in the form for serving, with rows of few bits."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from fbgemm_gpu.split_table_batched_embeddings_ops_common import PoolingMode
from torch import nn
from torchrec.modules.embedding_modules import EmbeddingCollection
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor

from dlrm_torchrec.embeddings.compositional.operations import Add, Mult, Passed
from dlrm_torchrec.embeddings.compositional.table_configs import StackedTable
from dlrm_torchrec.embeddings.tables import physical_configs
from dlrm_torchrec.inference.config import TableType
from dlrm_torchrec.inference.tables.composed import Paths
from dlrm_torchrec.inference.tables.lookups import Column, RowLookup, StoredTable
from dlrm_torchrec.inference.tables.serve import check_types, columns_of, table_weights

How = Literal["concat", "add", "mult"]


class Joined(nn.Module):
    """The vectors (ids, dim) of the ids of each key: their k rows side by side, added or multiplied."""

    features: torch.Tensor

    def __init__(self, keys: Sequence[Sequence[Column]], how: How, num_features: int) -> None:
        """``keys`` holds the k columns of each key; all tables have the same dim."""
        super().__init__()
        columns = [column for partition in zip(*keys, strict=True) for column in partition]
        self.lookup = RowLookup(columns, PoolingMode.NONE, num_features)
        self.k, self.dim, self.how = len(keys[0]), keys[0][0].table.weight.size(1), how
        self.register_buffer("features", torch.tensor([first.source for first, *_ in keys]))

    def forward(self, values: torch.Tensor, lengths: torch.Tensor) -> list[torch.Tensor]:
        counts: list[int] = lengths[self.features].sum(1).tolist()
        rows = self.lookup(values, lengths).view(self.k, sum(counts), self.dim)
        if self.how == "add":
            vectors = rows.sum(0)
        elif self.how == "mult":
            vectors = rows.prod(0)
        else:
            vectors = rows.transpose(0, 1).reshape(sum(counts), self.k * self.dim)
        return list(vectors.split(counts))


class Passing(nn.Module):
    """The vectors (ids, dim) of the ids of each key: rows that passed through networks."""

    def __init__(self, paths: Paths) -> None:
        super().__init__()
        self.paths, self.features = paths, paths.features

    def forward(self, values: torch.Tensor, lengths: torch.Tensor) -> list[torch.Tensor]:
        counts: list[int] = lengths[self.features].sum(1).tolist()
        return list(self.paths.vectors(values, lengths).split(counts))


class IdLookup(nn.Module):
    """The vectors (n, dim) of the n ids of each feature, from the ids (N,) of all features and the counts (F,) of each.

    They are those of the original collection of tables, except for rounding. TorchScript can compile this module.
    """

    def __init__(self, tables: EmbeddingCollection, types: Mapping[str, TableType], features: Sequence[str]) -> None:
        """Copies ``tables`` with the given ``types``, by table name, for ``features`` in order.

        Raises ValueError for a type that does not exist or does not fit its table.
        """
        super().__init__()
        check_types(tables, types)
        weights = table_weights(tables)
        joined: dict[tuple[int, int, How], list[list[Column]]] = defaultdict(list)  # by dim, k and how they are joined
        made: list[Passing | Joined] = []
        for config in physical_configs(tables):
            table = StoredTable(config.name, weights[config.name], types[config.name])
            operation = config.operation if isinstance(config, StackedTable) else None
            columns = columns_of(config, table, list(features))
            if isinstance(config, StackedTable) and isinstance(operation, Passed):
                made.append(Passing(Paths(columns, config.stack, operation, len(features))))
            else:
                how: How = "add" if isinstance(operation, Add) else "mult" if isinstance(operation, Mult) else "concat"
                joined[table.weight.size(1), len(columns[0]), how] += columns
        made += [Joined(columns, how, len(features)) for (*_, how), columns in joined.items()]
        self.parts = nn.ModuleList(made)
        sources = [source for part in made for source in part.features.tolist()]
        self.order = [sources.index(number) for number in range(len(features))]

    def forward(self, values: torch.Tensor, counts: torch.Tensor) -> list[torch.Tensor]:
        lengths = counts.unsqueeze(1)
        made: list[torch.Tensor] = []
        for part in self.parts:
            made += part(values, lengths)
        return [made[number] for number in self.order]


class ServedIdTables(nn.Module):
    """The vectors of every id: those of the original collection of tables, except for rounding."""

    def __init__(self, tables: EmbeddingCollection, types: Mapping[str, TableType], features: Sequence[str]) -> None:
        """The arguments are those of ``IdLookup``; batches must have the ``features`` as their keys, in order."""
        super().__init__()
        self.lookup = IdLookup(tables, types, features)

    def forward(self, features: KeyedJaggedTensor) -> dict[str, JaggedTensor]:
        vectors = self.lookup(features.values(), torch.tensor(features.length_per_key()))
        keys, ids = features.keys(), features.to_dict()
        return {key: JaggedTensor(own, lengths=ids[key].lengths()) for key, own in zip(keys, vectors, strict=True)}


def serve_id_tables(
    model: nn.Module, tables: EmbeddingCollection, types: Mapping[str, TableType], features: Sequence[str]
) -> nn.Module:
    """``model``, changed in place: ``ServedIdTables`` replace its ``tables``."""
    place = next(name for name, part in model.named_modules() if part is tables)
    model.set_submodule(place, ServedIdTables(tables, types, features))
    return model
