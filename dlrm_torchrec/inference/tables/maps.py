"""Maps of managed tables in a form that TorchScript can compile."""

from typing import ClassVar

import torch
from torch import nn

from dlrm_torchrec.embeddings.managed.buckets import bucket_of
from dlrm_torchrec.embeddings.managed.collection import ManagedEmbeddingBagCollection
from dlrm_torchrec.embeddings.managed.id_map import IdMap
from dlrm_torchrec.embeddings.managed.places import find_in_order
from dlrm_torchrec.embeddings.tables import Tables


class ServedMap(nn.Module):
    """The row (n,) of each id (n,): its own, or the one that the ids of its bucket share.

    ``ids`` has the id of each row. ``order``, the rows in the order of their ids, follows from it: whoever changes
    ``ids`` sets ``order`` to ``torch.argsort(ids, stable=True)``.
    """

    ids: torch.Tensor
    order: torch.Tensor
    ordered: ClassVar = ("ids", "order")  # packages store the first and sort it again

    def __init__(self, trained: IdMap) -> None:
        super().__init__()
        self.buckets, self.rows_per_bucket = trained.config.buckets, trained.rows_per_bucket
        self.register_buffer("ids", trained.ids.clone())
        self.register_buffer("order", torch.argsort(trained.ids, stable=True))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        shared = (bucket_of(ids, self.buckets) + 1) * self.rows_per_bucket - 1
        rows, _ = find_in_order(ids, self.ids, self.order, shared)
        return rows


def served_maps(tables: Tables) -> dict[str, ServedMap]:
    """The maps of managed tables, by name."""
    if not isinstance(tables, ManagedEmbeddingBagCollection):
        return {}
    return {name: ServedMap(trained) for name, trained in tables.maps.items() if isinstance(trained, IdMap)}
