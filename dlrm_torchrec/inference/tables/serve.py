"""The tables of a trained model in the form for serving: plain and compositional tables with rows of few bits."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from torch import nn
from torchrec.modules.embedding_configs import BaseEmbeddingConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingCollection, get_embedding_names_by_table
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from dlrm_torchrec.embeddings.compositional.operations import Add, FeatureGeneration, Mult, Passed
from dlrm_torchrec.embeddings.compositional.table_configs import StackedEmbeddingBagConfig, StackedTable
from dlrm_torchrec.embeddings.managed.table_configs import ManagedEmbeddingBagConfig
from dlrm_torchrec.embeddings.mixed_dimensions import MixedDimensionEmbeddingBagCollection
from dlrm_torchrec.embeddings.tables import Tables, bytes_of_ids, physical_configs
from dlrm_torchrec.inference.config import TableType
from dlrm_torchrec.inference.tables.composed import Paths, Products
from dlrm_torchrec.inference.tables.lookups import Column, StoredTable, Sums, by_feature
from dlrm_torchrec.inference.tables.maps import served_maps
from dlrm_torchrec.inference.tables.types import check_type, row_bytes

MAP_BYTES = 16  # of each row of a managed table: its id, and the order of rows by ids


class ServedTables(nn.Module):
    """Pooled vectors of every feature: those of the original collection of tables, except for rounding."""

    def __init__(self, tables: Tables, types: Mapping[str, TableType], features: Sequence[str]) -> None:
        """Copies ``tables`` with the given ``types``, by table name, for inputs whose keys are ``features`` in order.

        Raises ValueError for a type that does not exist or does not fit its table, and for tables that cannot be
        served.
        """
        super().__init__()
        self.lookup = TableLookup(tables, types, features)

    def forward(self, features: KeyedJaggedTensor) -> KeyedTensor:
        pooled: KeyedTensor = self.lookup(features.values(), features.lengths(), features.weights_or_none())
        return pooled


class TableLookup(nn.Module):
    """The same from tensors: ids (N,), their lengths (F * B,) and, if the tables are weighted, their weights (N,).

    The module holds FBGEMM's inference tables. TorchScript can compile it, so a process with only FBGEMM can load it.
    """

    divided: list[tuple[int, int]]  # for each key that is a mean, its number and that of its feature
    projected: list[int]  # the number of the key that each projection belongs to
    mapped: list[list[int]]  # the numbers of the features that each map is for

    def __init__(self, tables: Tables, types: Mapping[str, TableType], features: Sequence[str]) -> None:
        super().__init__()
        check_types(tables, types)
        model_configs, weights = tables.embedding_bag_configs(), table_weights(tables)
        names_by_table = get_embedding_names_by_table(model_configs)
        sums: dict[str, tuple[list[Column], bool]] = {}  # for each key, its columns and whether to add them
        products: dict[tuple[int, int], dict[str, list[Column]]] = defaultdict(dict)  # by dim and number of factors
        paths: list[Paths] = []
        path_keys: list[str] = []
        sources: list[int] = []  # the number of each key's feature
        for config, keys in zip(physical_configs(tables), names_by_table, strict=True):
            table = StoredTable(config.name, weights[config.name], types[config.name])
            operation = config.operation if isinstance(config, StackedEmbeddingBagConfig) else None
            columns = columns_of(config, table, list(features))
            sources += [of[0].source for of in columns]
            if isinstance(operation, Mult):
                products[config.embedding_dim, len(columns[0])].update(zip(keys, columns, strict=True))
            elif isinstance(operation, Passed):
                assert isinstance(config, StackedEmbeddingBagConfig)
                paths.append(Paths(columns, config.stack, operation, len(features)))
                path_keys += keys
            else:
                sums |= {key: (of, isinstance(operation, Add)) for key, of in zip(keys, columns, strict=True)}

        self.keys = [key for keys in names_by_table for key in keys]
        self.dims = [config.embedding_dim for config in model_configs for _ in config.feature_names]
        made = [*sums, *(key for part in products.values() for key in part), *path_keys]
        self.order = [made.index(key) for key in self.keys]
        means = [config.pooling is PoolingType.MEAN for config in model_configs for _ in config.feature_names]
        self.divided = [(number, sources[number]) for number, mean in enumerate(means) if mean]
        self.projections = nn.ModuleList()
        self.projected = []
        if isinstance(tables, MixedDimensionEmbeddingBagCollection):
            narrow = [
                key for key, table_name in tables.projections.table_of.items() if table_name in tables.projections
            ]
            self.projected = [self.keys.index(key) for key in narrow]
            self.projections.extend(tables.projections[tables.projections.table_of[key]] for key in narrow)
        maps = served_maps(tables)
        self.maps = nn.ModuleList(maps.values())
        named = {config.name: config.feature_names for config in model_configs}
        self.mapped = [[list(features).index(feature) for feature in named[name]] for name in maps]
        self.num_features = len(features)
        self.weighted = bool(tables.is_weighted())
        # one lookup returns the output of all tables
        self.together = not (products or paths or self.divided or self.projected or any(a for _, a in sums.values()))
        self.parts = nn.ModuleList([Sums(list(sums.values()), len(features), together=self.together)] if sums else [])
        self.parts.extend(Products(list(part.values()), len(features)) for part in products.values())
        self.parts.extend(paths)

    def forward(self, values: torch.Tensor, lengths: torch.Tensor, weights: torch.Tensor | None) -> KeyedTensor:
        if not self.weighted:
            weights = None
        lengths = lengths.view(self.num_features, lengths.numel() // self.num_features)
        if len(self.mapped) > 0:
            parts = by_feature(values, lengths)
            for number, of_table in enumerate(self.maps):
                for source in self.mapped[number]:
                    parts[source] = of_table(parts[source])
            values = torch.cat(parts)
        made: list[torch.Tensor] = []
        for part in self.parts:
            made += part(values, lengths, weights)
        if self.together:
            return KeyedTensor(self.keys, self.dims, made[0])
        pooled = [made[number] for number in self.order]
        for number, source in self.divided:
            pooled[number] = pooled[number] / lengths[source].clamp(min=1).unsqueeze(1)
        for place, projection in enumerate(self.projections):
            number = self.projected[place]
            pooled[number] = projection(pooled[number])
        return KeyedTensor(self.keys, self.dims, torch.cat(pooled, dim=1))


def serve_tables(
    model: nn.Module, tables: Tables, types: Mapping[str, TableType], features: Sequence[str]
) -> nn.Module:
    """``model``, changed in place: ``ServedTables`` replace its ``tables``."""
    place = next(name for name, part in model.named_modules() if part is tables)
    model.set_submodule(place, ServedTables(tables, types, features))
    return model


def table_weights(tables: Tables | EmbeddingCollection) -> dict[str, torch.Tensor]:
    """The stored weight (rows, dim) of every table, by name."""
    if isinstance(tables, EmbeddingCollection):
        return {name: table.weight for name, table in tables.embeddings.items()}
    stored = tables.tables if isinstance(tables, MixedDimensionEmbeddingBagCollection) else tables
    return {name: bag.weight for name, bag in stored.embedding_bags.items()}


def rounded_rows(config: BaseEmbeddingConfig) -> int:
    """The number of rows of a stored table that are rounded: the first rows; networks and cores stay float32."""
    if isinstance(config, StackedTable) and isinstance(config.operation, Passed):
        return config.stack.sizes[0]
    return int(config.num_embeddings)


def table_bytes(config: BaseEmbeddingConfig, kind: TableType) -> int:
    """Bytes of a served table, with the listed classes or the map of its ids."""
    rows, dim = rounded_rows(config), int(config.embedding_dim)
    listed = config.stack.partition.listed_bytes if isinstance(config, StackedTable) else 0
    listed += MAP_BYTES * rows * isinstance(config, ManagedEmbeddingBagConfig)
    return rows * row_bytes(kind, dim) + (int(config.num_embeddings) - rows) * row_bytes("fp32", dim) + listed


def trained_bytes(tables: Tables | EmbeddingCollection) -> int:
    """Bytes of all tables as they were trained, with what is kept of their ids."""
    kept = sum(bytes_of_ids(config) for config in physical_configs(tables))
    return kept + sum(each.nbytes for each in table_weights(tables).values())


def check_types(tables: Tables | EmbeddingCollection, types: Mapping[str, str]) -> None:
    """Raises ValueError unless every table has a type that fits it, and all tables can be served."""
    bags = [] if isinstance(tables, EmbeddingCollection) else tables.embedding_bag_configs()
    if bags and tables.is_weighted() and any(config.pooling is PoolingType.MEAN for config in bags):
        raise ValueError("weighted tables must add up rows to be served: got a mean; train them with sums")
    configs = {config.name: config for config in physical_configs(tables)}
    if set(types) != set(configs):
        unfit = sorted(set(types) ^ set(configs))
        raise ValueError(f"types must name every table and no others: got {unfit} on only one side; name each once")
    for name, config in configs.items():
        check_type(name, types[name], config.embedding_dim)


def columns_of(config: BaseEmbeddingConfig, table: StoredTable, features: list[str]) -> list[list[Column]]:
    """The columns that make each output of a table: k columns, or one with feature generation."""
    if not isinstance(config, StackedTable):
        return [[Column(table, features.index(name))] for name in config.feature_names]
    partition = config.stack.partition
    classes = list(zip(partition.digits, partition.codes, config.stack.first_rows, strict=True))
    sources = [features.index(name) for name in config.logical.feature_names]
    columns = [[Column(table, source, *each, partition.first_ids) for each in classes] for source in sources]
    if isinstance(config.operation, FeatureGeneration):
        return [[column] for of in columns for column in of]
    return columns
