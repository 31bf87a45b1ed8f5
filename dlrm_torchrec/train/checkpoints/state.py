"""A run's tensors under names that do not depend on how the tables are sharded."""

from __future__ import annotations

from typing import Any

from torch import nn
from torchrec.optim.fused import FusedOptimizer
from torchrec.optim.keyed import CombinedOptimizer

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
