"""Initial table weights that do not depend on how the tables are sharded."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import nn
from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection
from torchrec.distributed.types import ShardedTensor

from dlrm_torchrec.embeddings.compositional.stacked_rows import InitialRows
from dlrm_torchrec.embeddings.compositional.table_configs import StackedEmbeddingBagConfig
from dlrm_torchrec.embeddings.table_files import check_folder, open_table

_CHUNK_ELEMENTS = 1 << 22  # keeps temporary tensors below a few hundred MB


@torch.no_grad()
def initialize_tables(model: nn.Module, *, seed: int, pretrained: str = "") -> None:
    """Draw the initial weights of every table of a sharded model with ``fill_table``; each rank draws its own pieces.

    A table that has a file in the folder ``pretrained`` is read from that file instead (see ``table_files``). Raises
    ValueError when a file has another shape, or when the folder has no file for any table.
    """
    tables = [module for module in model.modules() if isinstance(module, ShardedEmbeddingBagCollection)]
    if pretrained:
        check_folder(pretrained, [_table(name) for module in tables for name in module.state_dict()])
    for module in tables:
        stacked: Mapping[str, StackedEmbeddingBagConfig] = getattr(module, "stacked", {})
        for name, weight in module.state_dict().items():
            table = _table(name)
            shape = weight.metadata().size if isinstance(weight, ShardedTensor) else weight.shape
            parts = stacked[table].initial_rows() if table in stacked else [InitialRows.plain(shape[0])]
            read = open_table(pretrained, table, shape) if pretrained else None
            for values, row, column in _pieces(weight):
                if read is None:
                    fill_table(values, parts, seed=seed, table=table, row=row, column=column)
                else:
                    values.copy_(read(row, row + len(values))[:, column : column + values.size(1)])


def _table(name: str) -> str:
    return name.removeprefix("embedding_bags.").removesuffix(".weight")


def _pieces(weight: torch.Tensor | ShardedTensor) -> Iterator[tuple[torch.Tensor, int, int]]:
    """The pieces of a table that this rank holds, each with its first row and first column."""
    if isinstance(weight, ShardedTensor):
        for shard in weight.local_shards():
            row, column = shard.metadata.shard_offsets
            yield shard.tensor, row, column
    else:  # replicated
        yield weight, 0, 0


@torch.no_grad()
def fill_table(
    values: torch.Tensor, parts: Sequence[InitialRows], *, seed: int, table: str, row: int = 0, column: int = 0
) -> None:
    """Fill a piece of a table in place; each of the table's ``parts`` has its own distribution.

    A plain table of n rows is one part, U(-sqrt(1/n), sqrt(1/n)) as in DLRM (arXiv 1906.00091). An element depends
    only on (seed, table, its row, its column), so the initial model is the same for any number of ranks and any
    sharding. TorchRec's own initialisation draws from each rank's generator instead.

    Args:
        values: the piece to fill (rows, columns)
        seed: the seed of the run
        table: the name of the table
        parts: the distributions of all rows of the table, in order
        row: the first row of the piece within the table
        column: the first column of the piece within the table
    """
    start = 0
    for part in parts:
        first, last = max(start, row), min(start + part.rows, row + len(values))
        if first < last:
            _fill(values[first - row : last - row], part, salt=_table_seed(seed, table), row=first, column=column)
        start += part.rows


def _fill(values: torch.Tensor, part: InitialRows, *, salt: int, row: int, column: int) -> None:
    columns = torch.arange(column, column + values.size(1), device=values.device)
    step = max(1, _CHUNK_ELEMENTS // max(1, values.size(1)))
    for start in range(0, values.size(0), step):
        stop = min(start + step, values.size(0))
        rows = torch.arange(row + start, row + stop, device=values.device)
        bits = _mix(((rows[:, None] << 20) + columns[None, :]) ^ salt)  # a dim is far below 2^20
        uniform = (bits >> 40 & 0xFFFFFF).to(torch.float32) * 2.0**-24
        values[start:stop] = (uniform * 2 - 1) * part.limit + part.center


def _table_seed(seed: int, table: str) -> int:
    digest = hashlib.blake2b(f"{seed}/{table}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def _mix(x: torch.Tensor) -> torch.Tensor:
    """SplitMix64's finaliser (Steele et al., OOPSLA 2014), that of ``datasets.random``, on int64 that wraps around."""
    x = (x ^ (x >> 30 & 0x3FFFFFFFF)) * -0x40A7B892E31B1A47
    x = (x ^ (x >> 27 & 0x1FFFFFFFFF)) * -0x6B2FB644ECCEEE15
    return x ^ (x >> 31 & 0x1FFFFFFFF)
