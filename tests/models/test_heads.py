"""DLRM with a top MLP per label, plain and as ``compile_dense`` rearranges it."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchrec.models.dlrm import DLRM
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrm_torchrec.models.heads import add_heads
from dlrm_torchrec.train import compile as compile_file

IDS = KeyedJaggedTensor(keys=["a", "b"], values=torch.arange(7) % 5, lengths=torch.tensor([1, 2, 0, 1, 2, 1]))


def model(heads: int, shift: float = 0.0) -> DLRM:
    torch.manual_seed(0)
    tables = [EmbeddingBagConfig(name=f, num_embeddings=5, embedding_dim=4, feature_names=[f]) for f in ("a", "b")]
    dlrm = DLRM(EmbeddingBagCollection(tables=tables), 3, [6, 4], [5, 3, 1])
    add_heads(dlrm, [shift * (1 + head) for head in range(heads)])
    return dlrm


def test_one_head_is_the_model_itself() -> None:
    torch.manual_seed(1)
    dense = torch.randn(3, 3)
    plain, one = model(1), model(1)
    assert plain.state_dict().keys() == one.state_dict().keys()
    assert torch.equal(plain(dense, IDS), one(dense, IDS))


def test_heads_share_what_is_below_them_and_nothing_else() -> None:
    three, plain = model(3), model(1)
    dense = torch.randn(3, 3)
    outputs = three(dense, IDS)
    assert outputs.shape == (3, 3)
    assert torch.allclose(outputs[:, :1], plain(dense, IDS))  # the first head is drawn as without others
    assert len({tuple(column.tolist()) for column in outputs.T}) == 3
    outputs[:, 1].sum().backward()
    touched = {name for name, value in three.named_parameters() if value.grad is not None and value.grad.any()}
    assert any(name.startswith("over_arch.model.1.") for name in touched)
    assert not any(name.startswith(("over_arch.model.0.", "over_arch.model.2.")) for name in touched)
    assert any(name.startswith("dense_arch.") for name in touched)


def test_compiling_keeps_names_and_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    dense = torch.randn(3, 3)
    two = model(2)
    names, before = list(two.state_dict()), two(dense, IDS)
    monkeypatch.setattr(nn.Module, "compile", lambda *_, **__: None)
    compile_file.compile_dense(two)
    assert list(two.state_dict()) == names
    assert torch.allclose(two(dense, IDS), before)


@pytest.mark.parametrize("heads", [1, 2])
def test_outputs_are_shifted(heads: int) -> None:
    dense = torch.randn(3, 3)
    shifts = torch.tensor([3.5, 7.0])[:heads]
    assert torch.allclose(model(heads, 3.5)(dense, IDS), model(heads)(dense, IDS) + shifts)
