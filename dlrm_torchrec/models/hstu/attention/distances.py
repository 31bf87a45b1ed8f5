"""What distances in places and in time add to the scores of a group, and the gradients of the tables that tell it."""

from __future__ import annotations

import torch

from dlrm_torchrec.models.hstu.attention.bias import TIME_BUCKETS, BiasTables, time_buckets
from dlrm_torchrec.models.hstu.attention.layout import Group
from dlrm_torchrec.models.hstu.attention.tiles import Tile

HIDDEN = -1e4  # added to a score, it makes SiLU and its derivative exactly 0: exp(1e4) is infinite
COPIES = 4  # of the table of times, for keys side by side: an addition to one waits for the last addition to the same


class Distances:
    """The bias of a group's scores, and ``HIDDEN`` where a key comes after the query.

    Keys side by side have distances in places that differ by one. So the bias of a query is a window of one line, which
    has the number of each distance, the greatest first.
    """

    def __init__(self, group: Group, tables: BiasTables | None, dtype: torch.dtype) -> None:
        device, most = group.places.device, group.keys.shape[1]
        self.tables, self.history = tables, group.history
        self.begins = most - group.places  # the windows, for all keys
        places = torch.arange(most, -most, -1, device=device)
        line = torch.zeros(len(places), dtype=dtype, device=device)
        if tables is not None:
            self.near = places.clamp(0, len(tables.places) - 1)
            line = tables.places[self.near]
            self.times = tables.times.repeat(COPIES)
            self.copies = torch.arange(most, dtype=torch.int32, device=device) % COPIES * TIME_BUCKETS
            query_times, key_times = (torch.cat([each, each.new_zeros(1)]).double() for each in tables[2:])
            self.query_times, self.key_times = query_times[group.queries], key_times[group.keys]
            self.line_grad, self.times_grad = torch.zeros_like(line), torch.zeros_like(self.times)
        self.line = line.masked_fill(places < 0, HIDDEN)

    def of(self, tile: Tile) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """What is added to scores (users, rows, columns), if anything, and where the table of times has its part."""
        if self.tables is None and not tile.hides:
            return None, None
        begins = self.begins[:, tile.rows] + tile.columns.start
        size = tile.columns.stop - tile.columns.start
        added = self.line.unfold(0, size, 1).index_select(0, begins.flatten()).view(*begins.shape, size)
        if self.tables is None:
            return added, None
        waits = self.query_times[:, tile.rows, None] - self.key_times[:, None, tile.columns]
        found = time_buckets(waits).add_(self.copies[tile.columns]).flatten()
        return added.add_(self.times.index_select(0, found).view_as(added)), found

    def add_gradient(self, tile: Tile, found: torch.Tensor, grad: torch.Tensor) -> None:
        """Take in the gradient (users, rows, columns) of what was added to a tile."""
        self.times_grad.index_add_(0, found, grad.flatten())
        rows, columns = grad.shape[1:]
        if tile.rows.stop <= self.history:  # each window begins one before that of the row above
            lines = grad.new_zeros(rows, rows + columns)
            torch.sum(grad, 0, out=lines.as_strided((rows, columns), (rows + columns - 1, 1), rows))
            begin = len(self.line_grad) // 2 - tile.rows.stop + tile.columns.start
            self.line_grad[begin : begin + rows + columns] += lines.sum(0)
        else:
            begins = self.begins[:, tile.rows, None] + tile.columns.start
            places = begins + torch.arange(columns, device=grad.device)
            self.line_grad.index_add_(0, places.flatten(), grad.flatten())

    def table_gradients(self) -> list[torch.Tensor]:
        """Those of places and times, if there are tables."""
        if self.tables is None:
            return []
        of_places = torch.zeros_like(self.tables.places).index_add_(0, self.near, self.line_grad)
        return [of_places, self.times_grad.view(COPIES, TIME_BUCKETS).sum(0)]
