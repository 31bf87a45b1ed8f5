"""What a run takes from another one beside the weights of its tables: their moments, and its other parameters.

A file ``<table>.safetensors`` may hold a table's moments under their names in checkpoints (``momentum1``, ...), with
the ``step`` of the optimizer in its metadata. ``dense.safetensors`` holds all parameters that are not tables.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from torchrec.distributed.types import ShardedTensor
from torchrec.optim.keyed import CombinedOptimizer

from dlrm_torchrec.table_names import table_of

DENSE = "dense.safetensors"
NO_MOMENTS = {"weight", "codes"}  # what else a table's file holds


@torch.no_grad()
def read_moments(optimizer: CombinedOptimizer, folder: str, say: Callable[[str], None]) -> None:
    """Set the moments of all tables of ``optimizer`` that have some in ``folder``, and the number of its steps.

    Those of another kind of optimizer stay as they are, which ``say`` is told.
    """
    for parameter, states in optimizer.state_dict()["state"].items():
        table = table_of(parameter)
        path = os.path.join(folder, f"{table}.safetensors")
        if table is None or not os.path.exists(path):
            continue
        own = {"momentum1" if name == "sum" else name.rpartition(".")[2]: value for name, value in states.items()}
        with safe_open(path, framework="pt") as file:
            stored = {name: file.get_slice(name) for name in file.keys() if name not in NO_MOMENTS}  # noqa: SIM118
            if any(name not in own or _size(own[name]) != tuple(part.get_shape()) for name, part in stored.items()):
                say(f"{path} has moments of another optimizer, so those of this table begin at 0")
                continue
            for name, part in stored.items():
                for piece, place in _pieces(own[name]):
                    piece.copy_(part[place].view(piece.shape))
            if stored:
                optimizer.set_optimizer_step(int(file.metadata()["step"]))


@torch.no_grad()
def read_dense(model: nn.Module, folder: str) -> None:
    """Set the parameters of ``model`` that are not tables, if ``folder`` has them.

    Raises ValueError when they are another model's.
    """
    path = os.path.join(folder, DENSE)
    if not os.path.exists(path):
        return
    own = {name: value for name, value in model.state_dict().items() if table_of(name) is None}
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118  # no dictionary
            given = file.get_tensor(name)
            if name not in own or own[name].shape != given.shape:
                raise ValueError(
                    f"{path} must hold parameters of this model: got {name} of shape {tuple(given.shape)}; remove the "
                    "file to begin with random ones"
                )
            own[name].copy_(given)


def _size(value: Any) -> tuple[int, ...]:
    """The shape of a moment; one number per row may have a second dim of 1."""
    size = tuple(value.metadata().size if isinstance(value, ShardedTensor) else value.shape)
    return size[:1] if size[1:] == (1,) else size


def _pieces(value: Any) -> Iterator[tuple[torch.Tensor, tuple[slice, ...]]]:
    """The pieces of a moment that this rank holds, and where they lie in it."""
    if not isinstance(value, ShardedTensor):
        yield value, (slice(None),) * len(_size(value))
        return
    for shard in value.local_shards():
        places = zip(shard.metadata.shard_offsets, shard.metadata.shard_sizes, strict=True)
        yield shard.tensor, tuple(slice(offset, offset + size) for offset, size in places)[: len(_size(value))]
