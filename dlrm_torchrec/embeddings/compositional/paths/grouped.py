"""Small networks, one per class; each is applied to the vectors of its class."""

from __future__ import annotations

import torch


def grouped_linear(
    vectors: torch.Tensor,
    classes: torch.Tensor,
    layers: list[tuple[torch.Tensor, torch.Tensor | None]],
    block: int = 32,
) -> torch.Tensor:
    """The output (N, out) of ``vectors`` (N, in) after the layers of their ``classes`` (N,), with ReLU between layers.

    A layer is a weight (num classes, in, out) and a bias (num classes, out) or None. Vectors are sorted into blocks of
    ``block`` vectors of one class, and a block has one copy of its weights. A layer is therefore one batched product
    whose shape depends only on N and the number of classes: an uneven split costs no more than an even one, and no
    count has to leave the device.
    """
    num_classes = len(layers[0][0])
    num_blocks = -(-len(vectors) // block) + num_classes
    counts = classes.new_zeros(num_classes).scatter_add(0, classes, torch.ones_like(classes))
    last_block = (-(-counts // block)).cumsum(0)
    block_class = torch.searchsorted(last_block, torch.arange(num_blocks, device=classes.device), right=True)
    block_class = block_class.clamp(max=num_classes - 1)  # spare blocks at the end hold no vectors

    order = classes.argsort(stable=True)
    first_slot = torch.cat([last_block.new_zeros(1), last_block[:-1]]) * block - (counts.cumsum(0) - counts)
    positions = torch.arange(len(classes), device=classes.device)
    slots = torch.empty_like(classes).index_copy(0, order, positions + first_slot[classes[order]])

    blocks = vectors.new_zeros(num_blocks * block, vectors.size(1)).index_copy(0, slots, vectors)
    blocks = blocks.view(num_blocks, block, -1)
    for number, (weight, bias) in enumerate(layers):
        if number:
            blocks = blocks.relu()
        blocks = blocks @ weight[block_class]
        if bias is not None:
            blocks = blocks + bias[block_class].unsqueeze(1)
    return blocks.reshape(-1, blocks.size(-1))[slots]
