"""Features of ids as features of rows, or of ordinals, for kernels and input dists that know only plain tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby

import torch
from torchrec.modules.embedding_configs import EmbeddingTableConfig, PoolingType
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrm_torchrec.embeddings.compositional.bags import Bags
from dlrm_torchrec.embeddings.compositional.operations import Summed
from dlrm_torchrec.embeddings.compositional.partitions.arithmetic import Naive
from dlrm_torchrec.embeddings.compositional.partitions.base import INT64_MAX
from dlrm_torchrec.embeddings.compositional.row_map import ClassRow, Piece, RowMap
from dlrm_torchrec.embeddings.compositional.sources import Source
from dlrm_torchrec.embeddings.compositional.table_configs import StackedTable
from dlrm_torchrec.embeddings.compositional.table_group import Member, TableGroup

_AS_IT_IS = ClassRow(Naive(INT64_MAX), 0, 0)  # of a plain table: an id is a row


def sources(table: EmbeddingTableConfig, stacked: Mapping[str, StackedTable]) -> list[str]:
    """The features whose ids ``table`` looks up; a compositional table may have several outputs for each feature."""
    config = stacked.get(table.name)
    return list(table.feature_names if config is None else config.logical.feature_names)


def rows_of_features(
    tables: Sequence[EmbeddingTableConfig], stacked: Mapping[str, StackedTable], *, count: bool
) -> RowMap:
    """A map from the ids of all features of ``tables`` to bags of rows, one piece for each output.

    The compositional ones must have operations that sum rows. With ``count``, a bag may have weights where its ids have
    none, and holds a row of few classes once.
    """
    found: list[Source] = []
    pieces: list[Piece] = []
    for table in tables:
        config = stacked.get(table.name)
        for feature in sources(table, stacked):
            number = len(found)
            if config is None:
                found.append(Source(INT64_MAX, feature, table.name))
                pieces.append(Piece(number, (_AS_IT_IS,)))
            else:
                assert isinstance(config.operation, Summed)
                mean, partition = config.pooling is PoolingType.MEAN, config.stack.partition
                found.append(Source(partition.num_ids, feature, table.name, mean, partition.first_ids))
                pieces += config.operation.pieces(number, config.stack.class_rows_of())
    return RowMap(found, pieces, count=count)


def map_features(
    rows: RowMap, _module: torch.nn.Module, features: tuple[KeyedJaggedTensor]
) -> tuple[KeyedJaggedTensor]:
    """The features of rows in place of the features of ids: a hook before a module's ``forward``."""
    (ids,) = features
    bags = rows(Bags(ids.values(), ids.lengths(), ids.weights_or_none(), ids.length_per_key()))
    keys = [f"{rows.sources[piece.source].feature}#{number}" for number, piece in enumerate(rows.pieces)]
    return (KeyedJaggedTensor(keys, bags.values, bags.weights, bags.lengths, stride=ids.stride()),)


Parts = list[tuple[int, RowMap | TableGroup]]  # numbers of features, with their map to rows or to ordinals


def parts_to_send(tables: Sequence[EmbeddingTableConfig], stacked: Mapping[str, StackedTable]) -> Parts:
    """What maps the ids of the features of ``tables`` before they are sent to the ranks that share the tables' rows.

    Where rows are only summed, it is the rows that are sent. Otherwise it is the ordinal of the id.
    """

    def spread(table: EmbeddingTableConfig) -> int:
        """The number of partitions of a table whose rows are not just summed, otherwise 0."""
        config = stacked.get(table.name)
        return 0 if config is None or config.sums_rows else len(config.stack.sizes)

    parts: Parts = []
    for k, run in groupby(tables, key=spread):
        own = list(run)
        if k:
            members = [Member(table.name, tuple(sources(table, stacked)), stacked[table.name].stack) for table in own]
            parts.append((sum(len(member.features) for member in members), TableGroup(members)))
        else:
            rows = rows_of_features(own, stacked, count=False)
            parts.append((len(rows.sources), rows))
    return parts


def map_parts(parts: Parts, _module: torch.nn.Module, features: tuple[KeyedJaggedTensor]) -> tuple[KeyedJaggedTensor]:
    """The features to send in place of the features of ids: a hook before an input dist's ``forward``."""
    (ids,) = features
    pieces = ids.split([count for count, _ in parts]) if len(parts) > 1 else [ids]
    mapped = [
        map_features(part, _module, (piece,))[0] if isinstance(part, RowMap) else _ordinals(part, piece)
        for (_, part), piece in zip(parts, pieces, strict=True)
    ]
    return (KeyedJaggedTensor.concat(mapped) if len(mapped) > 1 else mapped[0],)


def _ordinals(group: TableGroup, ids: KeyedJaggedTensor) -> KeyedJaggedTensor:
    bags = Bags(ids.values(), ids.lengths(), None, ids.length_per_key())
    return KeyedJaggedTensor(
        ids.keys(), group.ordinals(bags), ids.weights_or_none(), ids.lengths(), stride=ids.stride()
    )
