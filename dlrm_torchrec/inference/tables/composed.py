"""Lookups that combine the rows of each id before summing: products, and paths through small networks."""

from collections.abc import Sequence

import torch
from fbgemm_gpu.split_table_batched_embeddings_ops_common import PoolingMode
from torch import nn

from dlrm_torchrec.embeddings.compositional.operations import Passed
from dlrm_torchrec.embeddings.compositional.stacked_rows import StackedRows
from dlrm_torchrec.inference.tables.lookups import Classes, Column, RowLookup, selected


def pooled(vectors: torch.Tensor, lengths: torch.Tensor) -> list[torch.Tensor]:
    """Sums (B, dim) for each of n features, from one vector per id (ids, dim); ``lengths`` is (n, B)."""
    flat = lengths.flatten()
    if vectors.size(0) != flat.numel() or not bool((flat == 1).all()):
        vectors = torch.segment_reduce(vectors, "sum", lengths=flat.long(), axis=0, unsafe=True)
    return list(vectors.view(lengths.size(0), lengths.size(1), vectors.size(1)).unbind(0))


class Products(nn.Module):
    """One vector (B, dim) per key: the sum over its ids of the product of the k rows of its columns, and its weight."""

    features: torch.Tensor

    def __init__(self, keys: Sequence[Sequence[Column]], num_features: int) -> None:
        """``keys`` holds the k columns of each key; all tables have the same dim."""
        super().__init__()
        columns = [column for partition in zip(*keys, strict=True) for column in partition]
        self.lookup = RowLookup(columns, PoolingMode.NONE, num_features)
        self.sources = [first.source for first, *_ in keys]
        self.register_buffer("features", torch.tensor(self.sources))

    def forward(self, values: torch.Tensor, lengths: torch.Tensor, weights: torch.Tensor | None) -> list[torch.Tensor]:
        own_lengths = lengths[self.features]
        factors = self.lookup(values, lengths).split(max(int(own_lengths.sum()), 1))
        product = factors[0]
        for factor in factors[1:]:
            product = product * factor
        if weights is not None:
            product = product * selected(weights, lengths, self.sources).unsqueeze(1)
        return pooled(product, own_lengths)


def _through(
    vectors: torch.Tensor, classes: torch.Tensor, layers: list[tuple[torch.Tensor, torch.Tensor | None]]
) -> torch.Tensor:
    """The output (N, out) of ``vectors`` (N, in) after the layers of their ``classes`` (N,), with ReLU between layers.

    A layer is a weight (num classes, in, out) and a bias (num classes, out) or None. A class passes at a time. Where a
    vector is wider than a weight, its pieces pass one by one.
    """
    order = classes.argsort(stable=True)
    counts: list[int] = torch.bincount(classes, minlength=layers[0][0].size(0)).tolist()
    found: list[torch.Tensor] = []
    for number, group in enumerate(vectors[order].split(counts)):
        if group.size(0) > 0:
            for depth, (weight, bias) in enumerate(layers):
                if depth > 0:
                    group = group.relu()
                group = group.reshape(-1, weight.size(1)) @ weight[number]
                if bias is not None:
                    group = group + bias[number]
            found.append(group.reshape(counts[number], -1))
    if len(found) == 0:
        return vectors.new_zeros(0, vectors.size(1) // layers[0][0].size(1) * layers[-1][0].size(2))
    return torch.empty_like(torch.cat(found)).index_copy(0, order, torch.cat(found))


class Paths(nn.Module):
    """One vector (B, dim) per key of one table: the sum of its ids' rows, passed through the networks of their classes.

    With weights, each id's result is multiplied by its weight.

    The networks, or cores of a tensor train, stay float32 because they are few, many rows share them, and every batch
    reads all of them.
    """

    features: torch.Tensor
    networks: list[list[tuple[torch.Tensor, torch.Tensor | None]]]

    def __init__(self, keys: Sequence[Sequence[Column]], stack: StackedRows, path: Passed, num_features: int) -> None:
        super().__init__()
        table = keys[0][0].table
        first, *later = torch.split(table.weight.detach().float(), stack.sizes)
        rows = table._replace(weight=first)
        self.lookup = RowLookup([key[0]._replace(table=rows) for key in keys], PoolingMode.NONE, num_features)
        self.sources = [key[0].source for key in keys]
        self.register_buffer("features", torch.tensor(self.sources))
        self.classes = Classes(keys[0][1:])
        k, dim = len(stack.sizes), first.size(1)
        self.networks = [
            path.layers(networks.reshape(-1, rows, dim), number=number, k=k)
            for number, (networks, rows) in enumerate(zip(later, stack.class_rows[1:], strict=True), start=1)
        ]

    def vectors(self, values: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """The vector of each id (ids, dim), key by key."""
        ids = selected(values, lengths, self.sources)
        vectors: torch.Tensor = self.lookup(values, lengths)
        for number, layers in enumerate(self.networks):
            classes = self.classes(ids, torch.full_like(ids, number))
            vectors = _through(vectors, classes, layers)
        return vectors

    def forward(self, values: torch.Tensor, lengths: torch.Tensor, weights: torch.Tensor | None) -> list[torch.Tensor]:
        vectors = self.vectors(values, lengths)
        if weights is not None:
            vectors = vectors * selected(weights, lengths, self.sources).unsqueeze(1)
        return pooled(vectors, lengths[self.features])
