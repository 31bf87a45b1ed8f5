"""DLRM without dots against its formula."""

from __future__ import annotations

import torch
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrm_torchrec.models.dlrm_cat import DLRMCat


def test_the_top_mlp_gets_all_vectors_side_by_side() -> None:
    torch.manual_seed(0)
    tables = EmbeddingBagCollection(
        [EmbeddingBagConfig(name=f"t{i}", num_embeddings=9, embedding_dim=4, feature_names=[f"f{i}"]) for i in range(3)]
    )
    model = DLRMCat(tables, 5, [6, 4], [7, 1])
    dense = torch.randn(2, 5)
    ids = KeyedJaggedTensor(
        keys=["f0", "f1", "f2"], values=torch.randint(9, (7,)), lengths=torch.tensor([1, 2, 0, 1, 3, 0])
    )
    pooled = tables(ids)
    beside = torch.cat([model.dense_arch(dense), *(pooled[f"f{i}"] for i in range(3))], dim=1)
    assert beside.shape == (2, 4 * 4)
    assert torch.equal(model(dense, ids), model.over_arch(beside))
    assert [layer.in_features for layer in model.over_arch.modules() if isinstance(layer, torch.nn.Linear)] == [16, 7]
