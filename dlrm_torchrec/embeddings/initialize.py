"""Initial table weights that do not depend on how the tables are sharded."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import torch
from numba import float32, int32, types, uint64
from numpy.typing import NDArray
from torch import nn
from torchrec.distributed.embedding import ShardedEmbeddingCollection
from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection
from torchrec.distributed.types import ShardedTensor
from torchrec.optim.keyed import CombinedOptimizer

from dlrm_torchrec.compiled import compiled
from dlrm_torchrec.embeddings.compositional.stacked_rows import InitialRows
from dlrm_torchrec.embeddings.compositional.table_configs import StackedTable
from dlrm_torchrec.embeddings.mixing import mix, mix_word
from dlrm_torchrec.embeddings.pretrained import read_dense, read_moments
from dlrm_torchrec.embeddings.table_files import check_folder, open_table
from dlrm_torchrec.table_names import table_of

REPORT_EVERY_S = 2.0
_BLOCK_BYTES = 1 << 30  # filled between two reports; also the most that is read from a file at once
_CHUNK_ELEMENTS = 1 << 20  # filled by one thread at a time; it also keeps temporary tensors small


@torch.no_grad()
def initialize_tables(
    model: nn.Module,
    optimizer: CombinedOptimizer | None = None,
    *,
    seed: int,
    pretrained: str = "",
    say: Callable[[str], None] | None = None,
) -> None:
    """Draw the initial weights of every table of a sharded model with ``fill_table``; each rank draws its own pieces.

    A table that has a file in the folder ``pretrained`` is read from that file instead (see ``table_files``). The
    folder may also have moments, for ``optimizer`` or else for the optimizer that is fused with tables, and the other
    parameters (see ``pretrained``). ``say`` gets a line about the progress every two seconds. Raises ValueError when a
    file has another shape, or when the folder has no file for any table.
    """
    kinds = (ShardedEmbeddingBagCollection, ShardedEmbeddingCollection)
    tables = [module for module in model.modules() if isinstance(module, kinds)]
    weights = [
        (module, name, weight)
        for module in tables
        for name, weight in module.state_dict().items()
        if table_of(name) is not None
    ]
    if pretrained:
        check_folder(pretrained, [str(table_of(name)) for _, name, _ in weights])
    total = sum(block.nbytes for _, _, weight in weights for block, _, _ in _blocks(weight))
    done, reported = 0, time.perf_counter()
    for module, name, weight in weights:
        stacked: Mapping[str, StackedTable] = getattr(module, "stacked", {})
        table = str(table_of(name))
        shape = weight.metadata().size if isinstance(weight, ShardedTensor) else weight.shape
        parts = stacked[table].initial_rows() if table in stacked else [InitialRows.plain(shape[0])]
        read = open_table(pretrained, table, shape) if pretrained else None
        if read is not None and table in getattr(module, "managed", ()):
            raise ValueError(
                f"managed table {table!r} must begin without ids: got a file of its rows in {pretrained}, which does "
                "not say whose they are; remove the file, or go on from the run's own checkpoint"
            )
        for values, row, column in _blocks(weight):
            if read is None:
                fill_table(values, parts, seed=seed, table=table, row=row, column=column)
            else:
                values.copy_(read(row, row + len(values))[:, column : column + values.size(1)])
            done += values.nbytes
            if say is not None and time.perf_counter() - reported > REPORT_EVERY_S:
                reported = time.perf_counter()
                say(f"this rank has drawn {done / 1e9:.1f} of its {total / 1e9:.1f} GB of tables")
    if pretrained:
        read_moments(optimizer or model.fused_optimizer, pretrained, say or _say_nothing)
        read_dense(model, pretrained)


def _say_nothing(_: str) -> None:
    pass


def _blocks(weight: torch.Tensor | ShardedTensor) -> Iterator[tuple[torch.Tensor, int, int]]:
    """The pieces of a table that this rank holds, cut into blocks, each with its first row and first column."""
    pieces = [(weight, (0, 0))]  # replicated
    if isinstance(weight, ShardedTensor):
        pieces = [(shard.tensor, shard.metadata.shard_offsets) for shard in weight.local_shards()]
    for piece, (row, column) in pieces:
        step = max(1, _BLOCK_BYTES // max(1, piece[:1].nbytes))
        for start in range(0, len(piece), step):
            yield piece[start : start + step], row + start, column


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
            _fill(values[first - row : last - row], part, salt=table_seed(seed, table), row=first, column=column)
        start += part.rows


def _fill(values: torch.Tensor, part: InitialRows, *, salt: int, row: int, column: int) -> None:
    step = max(1, _CHUNK_ELEMENTS // max(1, values.size(1)))
    chunks = [(values[start : start + step], row + start) for start in range(0, len(values), step)]
    draw = partial(_draw_on_cpu if values.device.type == "cpu" else _draw, part=part, salt=salt, column=column)
    if len(chunks) == 1 or values.device.type != "cpu":
        for chunk, first in chunks:
            draw(chunk, first)
    else:
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            list(pool.map(draw, *zip(*chunks, strict=True)))


def _draw(values: torch.Tensor, row: int, *, part: InitialRows, salt: int, column: int) -> None:
    """Fill rows ``row`` ... of a part on any device."""
    rows = torch.arange(row, row + len(values), device=values.device)
    draw_rows(values, rows, part, salt=salt, column=column)


@torch.no_grad()
def draw_rows(values: torch.Tensor, rows: torch.Tensor, part: InitialRows, *, salt: int, column: int = 0) -> None:
    """Fill ``values`` (n, columns) with initial weights that depend only on the numbers ``rows`` (n,) and ``salt``."""
    columns = torch.arange(column, column + values.size(1), device=values.device)
    bits = mix(((rows[:, None] << 20) + columns[None, :]) ^ salt)  # a dim is far below 2^20
    uniform = (bits >> 40 & 0xFFFFFF).to(torch.float32) * 2.0**-24
    values.copy_((uniform * 2 - 1) * part.limit + part.center)


def _draw_on_cpu(values: torch.Tensor, row: int, *, part: InitialRows, salt: int, column: int) -> None:
    """The same numbers as ``_draw``, at the speed of the memory."""
    drawn = values.detach()
    if values.dtype != torch.float32 or not values.is_contiguous():
        drawn = torch.empty(values.shape)
    first = np.uint64((row << 20) + column)
    _draw_rows(drawn.numpy(), first, np.uint64(salt % 2**64), np.float32(part.limit), np.float32(part.center))
    if drawn.data_ptr() != values.data_ptr():
        values.copy_(drawn)


@compiled(types.Array(float32, 2, "C"), uint64, uint64, float32, float32)
def _draw_rows(  # noqa: PLR0917  # compiled functions take no keywords
    values: NDArray[np.float32], first: np.uint64, salt: np.uint64, limit: np.float32, center: np.float32
) -> None:
    for row in range(values.shape[0]):
        position = first + (uint64(row) << uint64(20))
        for column in range(values.shape[1]):
            bits = mix_word((position + uint64(column)) ^ salt)
            uniform = float32(int32(bits >> uint64(40))) * float32(2.0**-24)
            values[row, column] = (uniform * float32(2) - float32(1)) * limit + center


def table_seed(seed: int | str, table: str) -> int:
    """A number of 64 bits for a table in a run."""
    digest = hashlib.blake2b(f"{seed}/{table}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)
