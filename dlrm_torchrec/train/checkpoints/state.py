"""A run's tensors under names that do not depend on how the tables are sharded, and their way back."""

from __future__ import annotations

from collections import ChainMap
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torchrec.distributed.types import ShardedTensor
from torchrec.optim.fused import FusedOptimizer
from torchrec.optim.keyed import CombinedOptimizer

from dlrm_torchrec.train.checkpoints.storage import IoPathReader
from dlrm_torchrec.train.optimizers import REPLICATED


def run_tensors(model: nn.Module, optimizer: CombinedOptimizer) -> dict[str, dict[str, Any]]:
    """The model's and the optimizer's own tensors, not copies: loading into them restores the run.

    A replicated table's Adagrad ``sum`` gets the name and shape of a fused table's ``momentum1``. Its step count is not
    included, because Adagrad needs it only for a decay that no option offers.
    """
    tensors: dict[str, Any] = {}
    for parameter, states in optimizer.state_dict()["state"].items():
        for name, value in states.items():
            if parameter.startswith(f"{REPLICATED}."):
                if name == "sum":
                    path = parameter.removeprefix(f"{REPLICATED}.")
                    table = path.split(".")[-2]
                    row_wise = value.size(-1) == 1
                    tensors[f"{path}/{table}.momentum1"] = value.view(-1) if row_wise else value
            else:
                tensors[f"{parameter}/{name}"] = value
    return {"model": model.state_dict(), "optimizer": tensors}


def materialise_state(optimizer: CombinedOptimizer) -> None:
    """Create the state that torch's optimizers would allocate at their first step, so it can be loaded in place."""
    for _, part in optimizer.optimizers:
        if not isinstance(part, FusedOptimizer | CombinedOptimizer):
            part.init_state()
            part.zero_grad()


def restore(path: str, state: dict[str, dict[str, Any]], group: dist.ProcessGroup | None = None) -> None:
    """Read a checkpoint into the tensors of ``state``, on all ranks of ``group`` together or without ranks.

    Raises ValueError, before any tensor is touched, unless the checkpoint has just these tensors.
    """
    sizes = [_sizes(state)]
    if group is not None:
        sizes *= dist.get_world_size(group)
        dist.all_gather_object(sizes, _sizes(state), group=group)  # nodes have tables of their own
    _refuse_foreign_tensors(path, tuple(state), dict(ChainMap(*sizes)))
    dcp.load(state, storage_reader=IoPathReader(path), process_group=group, no_dist=group is None)


def _sizes(state: dict[str, dict[str, Any]]) -> dict[str, tuple[int, ...]]:
    """Sizes of tensors by the names that they have in a checkpoint."""
    return {f"{part}.{name}": _size(value) for part, tensors in state.items() for name, value in tensors.items()}


def _size(value: Any) -> tuple[int, ...]:
    """The shape of a tensor, sharded or not; its own method warns of ShardedTensor in every resumed run."""
    return tuple(value.metadata().size if isinstance(value, ShardedTensor) else value.size())


def _refuse_foreign_tensors(path: str, parts: tuple[str, ...], wanted: dict[str, tuple[int, ...]]) -> None:
    """ValueError unless the checkpoint's ``parts`` have just the ``wanted`` tensors; before any tensor is touched."""
    saved = {
        name: tuple(entry.size)
        for name, entry in IoPathReader(path).read_metadata().state_dict_metadata.items()
        if name.partition(".")[0] in parts and isinstance(entry, TensorStorageMetadata)
    }
    advice = "it belongs to another model or optimizer, so start anew in another --run-dir"
    for name, size in wanted.items():
        if saved.get(name) != size:
            found = f"one of shape {saved[name]}" if name in saved else "no tensor of that name"
            raise ValueError(f"checkpoint {path} must hold {name} of shape {size}: got {found}; {advice}")
    left = sorted(saved.keys() - wanted.keys())
    if left:
        raise ValueError(
            f"checkpoint {path} must hold no more tensors than this model has: got {left[0]}, one of {len(left)} that "
            f"it lacks; {advice}"
        )
