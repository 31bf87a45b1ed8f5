"""Small networks, one per class; each is applied to the vectors of its class."""

from __future__ import annotations

from collections.abc import Callable
from math import isqrt

import torch

Layers = list[tuple[torch.Tensor, torch.Tensor | None]]
_FEWEST = 32  # vectors of a block; smaller products leave a GPU idle


def grouped_linear(
    vectors: torch.Tensor,
    classes: torch.Tensor,
    networks: torch.Tensor,
    layers: Callable[[torch.Tensor], Layers],
    *,
    pieces: int = 1,
) -> torch.Tensor:
    """The output (N, out) of ``vectors`` (N, in) after the layers of their ``classes`` (N,), with ReLU between layers.

    A vector may consist of ``pieces`` that pass one by one: (N, pieces * in) becomes (N, pieces * out).

    ``networks`` (num classes, rows, columns) holds a network per class, and ``layers`` splits n of them into layers:
    weights (n, in, out) and biases (n, out) or None. Vectors are sorted into blocks of one class, and a block has one
    copy of its network. A layer is therefore one batched product whose shape depends only on N and the number of
    classes: an uneven split costs no more than an even one, and no count has to leave the device.
    """
    num_classes, device = len(networks), vectors.device
    block = block_size(len(vectors), num_classes, networks.size(1), fewest=max(_FEWEST // pieces, 1))
    in_order, order = classes.sort(stable=True)
    each = torch.arange(num_classes, device=device)
    first = torch.searchsorted(in_order, each)
    first_block = first // block + each  # a class of n vectors gets n / block blocks, rounded up, or one more
    num_blocks = len(vectors) // block + num_classes
    block_class = torch.searchsorted(first_block, torch.arange(num_blocks, device=device), right=True) - 1

    places = torch.arange(len(vectors), device=device) + (first_block * block - first)[in_order]
    slots = torch.empty_like(order).index_copy(0, order, places)
    blocks = vectors.new_zeros(num_blocks * block, vectors.size(1)).index_copy(0, slots, vectors)
    blocks = blocks.view(num_blocks, block * pieces, -1)
    for number, (weight, bias) in enumerate(layers(networks[block_class])):
        if number:
            blocks = blocks.relu()
        blocks = blocks @ weight
        if bias is not None:
            blocks = blocks + bias.unsqueeze(1)
    return blocks.view(num_blocks * block, -1)[slots]


def block_size(num_vectors: int, num_classes: int, rows: int, *, fewest: int = _FEWEST) -> int:
    """The number of vectors of a block for which the copies of networks need about as much memory as spare places.

    That is b where (``num_vectors`` / b) * ``rows`` = ``num_classes`` * b.
    """
    return max(1, isqrt(num_vectors * rows // num_classes) // fewest) * fewest
