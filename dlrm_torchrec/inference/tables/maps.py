"""Maps of managed tables in a form that TorchScript can compile."""

import torch
from torch import nn

from dlrm_torchrec.embeddings.managed.buckets import bucket_of
from dlrm_torchrec.embeddings.managed.collection import ManagedEmbeddingBagCollection
from dlrm_torchrec.embeddings.managed.id_map import IdMap
from dlrm_torchrec.embeddings.tables import Tables


class ServedMap(nn.Module):
    """The row (n,) of each id (n,): its own, or the one that the ids of its bucket share.

    ``ids`` has the id of each row. ``order``, the rows in the order of their ids, follows from it: whoever changes
    ``ids`` sets ``order`` to ``torch.argsort(ids)``.
    """

    ids: torch.Tensor
    order: torch.Tensor

    def __init__(self, trained: IdMap) -> None:
        super().__init__()
        self.buckets, self.rows_per_bucket = trained.config.buckets, trained.rows_per_bucket
        self.register_buffer("ids", trained.ids.clone())
        self.register_buffer("order", torch.argsort(trained.ids))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        place = torch.searchsorted(self.ids, ids, sorter=self.order).clamp(max=self.ids.size(0) - 1)
        rows = self.order[place]
        shared = (bucket_of(ids, self.buckets) + 1) * self.rows_per_bucket - 1
        return torch.where(self.ids[rows] == ids, rows, shared)


def served_maps(tables: Tables) -> dict[str, ServedMap]:
    """The maps of managed tables, by name."""
    if not isinstance(tables, ManagedEmbeddingBagCollection):
        return {}
    return {name: ServedMap(trained) for name, trained in tables.maps.items() if isinstance(trained, IdMap)}
