"""Rows of tables that begin anew, because their ids now mean other values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torchrec.distributed.types import ShardedTensor
from torchrec.optim.keyed import CombinedOptimizer

from dlrm_torchrec.embeddings.compositional.stacked_rows import InitialRows
from dlrm_torchrec.embeddings.initialize import draw_rows, table_seed
from dlrm_torchrec.table_names import table_of


@torch.no_grad()
def restart_rows(
    model: nn.Module, optimizer: CombinedOptimizer, fresh: Mapping[str, NDArray[np.int64]], *, seed: int
) -> None:
    """Draw the rows ``fresh`` (n,) of each table as ``initialize_tables`` does, and set their moments to 0, in place.

    Each rank does so for its own pieces. Raises ValueError when a table does not have a row of its own for each id.
    """
    if not fresh:
        return
    stacked = {name for module in model.modules() for name in getattr(module, "stacked", {})}
    for table in fresh:
        if table in stacked:
            raise ValueError(
                f"table {table} must be plain, because some of its ids have other values now: got ids that share rows; "
                "use plain tables, or managed ids without a vocabulary"
            )
    for name, weight in model.state_dict().items():
        table = table_of(name) or ""
        if table in fresh:
            part = InitialRows.plain(_rows(weight))
            for piece, rows, own, column in _own_rows(weight, fresh[table]):
                drawn = torch.empty(len(own), piece.size(1), device=piece.device)
                draw_rows(drawn, rows.to(piece.device), part, salt=table_seed(seed, table), column=column)
                piece[own] = drawn.to(piece.dtype)
    for name, states in optimizer.state_dict()["state"].items():
        table = table_of(name) or ""
        for moment in states.values() if table in fresh else ():
            if isinstance(moment, ShardedTensor) or (
                isinstance(moment, torch.Tensor) and moment.dim()
            ):  # no step count
                for piece, _, own, _ in _own_rows(moment, fresh[table]):
                    piece[own] = 0


def _rows(value: torch.Tensor | ShardedTensor) -> int:
    return int(value.metadata().size[0] if isinstance(value, ShardedTensor) else value.size(0))


def _own_rows(
    value: torch.Tensor | ShardedTensor, fresh: NDArray[np.int64]
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]]:
    """Each piece of a tensor on this rank: those of the rows ``fresh`` in it, their places, and the first column."""
    pieces = [(value, [0, 0])]
    if isinstance(value, ShardedTensor):
        pieces = [(shard.tensor, [*shard.metadata.shard_offsets, 0]) for shard in value.local_shards()]
    for piece, (first, column, *_) in pieces:
        rows = torch.from_numpy(fresh[(fresh >= first) & (fresh < first + len(piece))])
        yield piece, rows, (rows - first).to(piece.device), column
