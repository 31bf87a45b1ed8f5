"""Products of rows in one pass over the ids: what ``Mult`` is on CPU, with the optimizer in backward."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import torch

from dlrm_torchrec.embeddings.compositional.bags import Bags, offsets_of
from dlrm_torchrec.embeddings.compositional.table_group import TableGroup
from dlrm_torchrec.sharding.modules.products.kernels import (
    ProductBags,
    ProductLayout,
    look_up_products,
    update_products,
)
from dlrm_torchrec.sharding.modules.sorted_updates import SortedTables


class Products:
    """Pooled products (B, features x dim) of a group's rows, which ``tables`` hold as one table."""

    def __init__(self, group: TableGroup, tables: SortedTables, *, mean: bool) -> None:
        self.group, self.tables, self.mean = group, tables, mean
        counts = [len(member.features) for member in group.members]
        lines = [
            (last - count, last, base, member.stack.sizes[0], sum(member.stack.sizes[1:]))
            for last, count, base, member in zip(accumulate(counts), counts, group.bases, group.members, strict=True)
        ]
        self.layout = ProductLayout(np.array(lines, np.int64), group.num_features, int(tables.layout.columns[-1]))

    def __call__(self, bags: Bags) -> torch.Tensor:
        """The vectors of bags (features x B), whose weights have no gradient."""
        rows = self.group.rows(bags._replace(weights=None)).values.view(self.group.k, len(bags.values))
        factors = torch.empty(0) if bags.weights is None else bags.weights.float()
        if self.mean:
            shares = bags.lengths.float().reciprocal().repeat_interleave(bags.lengths, output_size=len(bags.values))
            factors = shares if bags.weights is None else shares * factors
        pooled: torch.Tensor = _Products.apply(  # type: ignore[no-untyped-call]  # untyped in torch
            self, rows, offsets_of(bags.lengths), factors.contiguous(), self.tables.tables.weights_host
        )
        return pooled

    def look_up(self, rows: torch.Tensor, offsets: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
        layout = self.layout
        output = torch.empty((len(offsets) - 1) // layout.num_features, layout.num_features * layout.dim)
        weights = self.tables.tables.weights_host.detach().numpy()
        look_up_products(layout, _numpy(rows, offsets, factors), weights, output.view(-1).numpy())
        return output

    def update(self, rows: torch.Tensor, offsets: torch.Tensor, factors: torch.Tensor, gradient: torch.Tensor) -> None:
        rule, numbers = self.tables.next_step()
        flat = gradient.float().contiguous().view(-1).numpy()
        update_products(self.layout, _numpy(rows, offsets, factors), numbers, rule, flat)


class SingleProducts(Products):
    """The products (N, dim) of the rows of single ids, which are bags of their own, table by table."""

    def __init__(self, group: TableGroup, tables: SortedTables) -> None:
        super().__init__(group, tables, mean=False)
        self.layouts = [
            ProductLayout(np.array([(0, 1, *line[2:])], np.int64), 1, self.layout.dim) for line in self.layout.tables
        ]

    def __call__(self, bags: Bags) -> torch.Tensor:
        """The vectors of all ids; weights are ignored."""
        rows = self.group.rows(bags._replace(weights=None)).values.view(self.group.k, len(bags.values))
        ids = offsets_of(bags.lengths.view(self.group.num_features, -1).sum(1))
        tables = ids[[0, *self.layout.tables[:, 1]]]  # where the ids of each table begin
        products: torch.Tensor = _Products.apply(  # type: ignore[no-untyped-call]  # untyped in torch
            self, rows, tables, torch.empty(0), self.tables.tables.weights_host
        )
        return products

    def look_up(self, rows: torch.Tensor, offsets: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
        output, weights = torch.empty(rows.size(1), self.layout.dim), self.tables.tables.weights_host.detach().numpy()
        for layout, part, bags in self._parts(rows, offsets, factors):
            look_up_products(layout, bags, weights, output[part].view(-1).numpy())
        return output

    def update(self, rows: torch.Tensor, offsets: torch.Tensor, factors: torch.Tensor, gradient: torch.Tensor) -> None:
        (rule, numbers), gradient = self.tables.next_step(), gradient.float().contiguous()
        for layout, part, bags in self._parts(rows, offsets, factors):
            update_products(layout, bags, numbers, rule, gradient[part].view(-1).numpy())

    def _parts(
        self, rows: torch.Tensor, offsets: torch.Tensor, factors: torch.Tensor
    ) -> Iterator[tuple[ProductLayout, slice, ProductBags]]:
        """The layout of each table, where its ids are, and these as bags."""
        for layout, (begin, end) in zip(self.layouts, pairwise(offsets.tolist()), strict=True):
            part = slice(begin, end)
            yield layout, part, _numpy(rows[:, part].contiguous(), torch.arange(end - begin + 1), factors)


def _numpy(rows: torch.Tensor, offsets: torch.Tensor, factors: torch.Tensor) -> ProductBags:
    return ProductBags(rows.numpy(), offsets.numpy(), factors.numpy())


class _Products(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0917  # torch passes arguments by position
        ctx: Any,
        products: Products,
        rows: torch.Tensor,
        offsets: torch.Tensor,
        factors: torch.Tensor,
        _weights: torch.Tensor,  # needs a gradient, so that torch calls backward
    ) -> torch.Tensor:
        ctx.products = products
        ctx.save_for_backward(rows, offsets, factors)
        return products.look_up(rows, offsets, factors)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[None, ...]:
        ctx.products.update(*ctx.saved_tensors, gradient)
        return (None,) * 5
