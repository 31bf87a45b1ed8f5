"""Served managed tables answer raw ids as the trained collection does in evaluation mode."""

from __future__ import annotations

import io
import warnings

import pytest
import torch
from torch import nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrm_torchrec.embeddings.managed.collection import ManagedEmbeddingBagCollection
from dlrm_torchrec.embeddings.managed.id_map import IdMap
from dlrm_torchrec.inference.tables.maps import ServedMap
from dlrm_torchrec.inference.tables.serve import ServedTables, table_bytes, trained_bytes
from tests.embeddings.managed.test_collection import IDS, batches, configs


@pytest.fixture(params=[False, True])
def trained(request: pytest.FixtureRequest) -> ManagedEmbeddingBagCollection:
    tables = ManagedEmbeddingBagCollection(configs(update_every=2), request.param)
    for batch in batches(9, weighted=request.param, seed=torch.seed() % 2**40):
        tables(batch)
    return tables.eval()


class Pooled(nn.Module):
    """What a scripted program can take and give: tensors."""

    def __init__(self, served: ServedTables) -> None:
        super().__init__()
        self.served, self.keys = served, list(IDS)

    def forward(self, ids: torch.Tensor, lengths: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
        bags = KeyedJaggedTensor(keys=self.keys, values=ids, lengths=lengths, weights=weights)
        vectors: torch.Tensor = self.served(bags).values()
        return vectors


def test_a_served_collection_reads_the_rows_of_raw_ids(trained: ManagedEmbeddingBagCollection) -> None:
    types = dict.fromkeys(("plain", "managed", "qr"), "fp32")
    served = Pooled(ServedTables(trained, types, list(IDS)))  # type: ignore[arg-type]  # literals
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        file = io.BytesIO()
        torch.jit.save(torch.jit.freeze(torch.jit.script(served.eval())), file)
    program = torch.jit.load(io.BytesIO(file.getvalue()))
    with_row = 0
    for batch in batches(4, weighted=trained.is_weighted(), seed=torch.seed() % 2**40):
        expected = trained(batch).values()
        arguments = batch.values(), batch.lengths(), batch.weights_or_none()
        torch.testing.assert_close(served(*arguments), expected)
        torch.testing.assert_close(program(*arguments), expected)
        with_row += int(trained.maps["managed"].find(batch["b"].values())[1].sum())  # type: ignore[operator]  # a module
    assert with_row > 0


def test_a_map_whose_ids_change_follows_with_its_order(trained: ManagedEmbeddingBagCollection) -> None:
    """A delta changes some ids; what is sorted is made again."""
    own = trained.maps["managed"]
    assert isinstance(own, IdMap)
    served = ServedMap(own)
    own.train()
    own.train_step(torch.arange(9_000, 9_100))
    own.train_step(torch.arange(9_050, 9_200))
    changed = (served.ids != own.ids).nonzero().view(-1)
    assert 0 < len(changed) < 1_026
    served.ids[changed] = own.ids[changed]
    served.order = torch.argsort(served.ids)
    ids = torch.cat([torch.arange(9_000, 9_300), torch.randint(0, 60, (500,)) ** 6])
    assert torch.equal(served(ids), own.find(ids)[0])


def test_bytes_have_the_maps(trained: ManagedEmbeddingBagCollection) -> None:
    _, managed, _ = trained.physical_configs()
    assert table_bytes(managed, "int8") == 1_026 * (8 + 4 + 8 + 8)
    kept = sum(buffer.nbytes for buffer in trained.maps["managed"].buffers()) + 1_026 * 4  # where rows are found
    weights = sum(weight.nbytes for weight in trained.parameters())
    assert trained_bytes(trained) == weights + kept
