"""What happened to the ids of managed tables since the last report."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn

from dlrm_torchrec.embeddings.managed.id_map import TALLIES
from dlrm_torchrec.sharding.modules.managed.sharded import ShardedManagedEmbeddingBagCollection


def managed_report(model: nn.Module) -> dict[str, float]:
    """Of each managed table of a sharded model, what training did to its ids; all ranks call this and get the same.

    A number is named ``<table>/<what>``. It is counted from the last report on, also over an interruption, but for
    ``occupied``:

    - ``without_row``: the share of lookups that read a shared row, and ``lookups``: how many there were;
    - ``admitted``, ``evicted``: ids that got a row, and lost it;
    - ``returned``: those of ``admitted`` that had lost one; one in 255 is counted in error, and an id is forgotten once
      another one of its bucket took the place of its trace, of which there are as many as rows;
    - ``occupied``: the share of rows that belong to an id now.
    """
    found: dict[str, float] = {}
    for module in model.modules():
        if isinstance(module, ShardedManagedEmbeddingBagCollection):
            found |= _report(module)
    return found


def _report(module: ShardedManagedEmbeddingBagCollection) -> dict[str, float]:
    names = {name: number for number, name in enumerate(module.managed)}
    device = next(iter(module.parameters())).device
    sums = torch.zeros(len(names), len(TALLIES) + 1, dtype=torch.int64, device=device)
    for name, ids_to_rows in module.local_maps():
        sums[names[name], :-1] = ids_to_rows.tallies.sum(0)
        sums[names[name], -1] = ids_to_rows.occupied()
        ids_to_rows.tallies.zero_()
    dist.all_reduce(sums, group=module.process_group)
    found: dict[str, float] = {}
    for name, counts in zip(names, sums.tolist(), strict=True):
        own = dict(zip((*TALLIES, "occupied"), map(float, counts), strict=True))
        own["without_row"] /= max(own["lookups"], 1)
        own["occupied"] /= module.managed[name].num_embeddings
        found |= {f"{name}/{what}": value for what, value in own.items()}
    return found
