"""Features of ids as features of physical rows, for kernels and input dists that know only plain tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torchrec.modules.embedding_configs import EmbeddingTableConfig, PoolingType
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrm_torchrec.embeddings.compositional.bags import Bags
from dlrm_torchrec.embeddings.compositional.operations import Summed
from dlrm_torchrec.embeddings.compositional.partitions import INT64_MAX, Naive
from dlrm_torchrec.embeddings.compositional.row_map import ClassRow, Piece, RowMap, Source
from dlrm_torchrec.embeddings.compositional.table_configs import StackedEmbeddingBagConfig

_AS_IT_IS = ClassRow(Naive(INT64_MAX), 0, 0)  # of a plain table: an id is a row


def sources(table: EmbeddingTableConfig, stacked: Mapping[str, StackedEmbeddingBagConfig]) -> list[str]:
    """The features whose ids ``table`` looks up; a compositional table may have several outputs for each feature."""
    config = stacked.get(table.name)
    return list(table.feature_names if config is None else config.logical.feature_names)


def rows_of_features(
    tables: Sequence[EmbeddingTableConfig], stacked: Mapping[str, StackedEmbeddingBagConfig], *, count: bool
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
                mean = config.pooling is PoolingType.MEAN
                found.append(Source(config.stack.partition.num_ids, feature, table.name, mean))
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
