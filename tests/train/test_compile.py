"""Compiled dense parts against TorchRec's DLRM: values, gradients, parameter names."""

from __future__ import annotations

import copy

import pytest
import torch
from torchrec.models.dlrm import DLRM, InteractionArch
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from dlrm_torchrec.train.compile import DotInteraction, InteractionAndTop, OrderedSparseArch, compile_dense, in_order


@pytest.mark.parametrize(("features", "dim"), [(0, 4), (1, 4), (5, 3), (26, 16)])
def test_interaction_equals_torchrec(features: int, dim: int) -> None:
    torch.manual_seed(features)
    dense = torch.randn(7, dim, dtype=torch.float64, requires_grad=True)
    sparse = torch.randn(7, features, dim, dtype=torch.float64, requires_grad=True)
    expected = InteractionArch(features)(dense, sparse)
    result = DotInteraction(features)(dense, sparse)
    torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-12)
    upstream = torch.randn_like(expected)
    inputs = (dense, sparse) if features else (dense,)
    gradients = torch.autograd.grad(result, inputs, upstream)
    for ours, theirs in zip(gradients, torch.autograd.grad(expected, inputs, upstream), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_interaction_gradient_is_the_finite_difference() -> None:
    torch.manual_seed(0)
    dense = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    sparse = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(DotInteraction(4), (dense, sparse))


def test_pooled_columns_follow_the_features() -> None:
    values = torch.arange(8.0).reshape(2, 4)
    pooled = KeyedTensor(keys=["b", "a"], length_per_key=[1, 3], values=values)
    assert torch.equal(in_order(pooled, ["a", "b"]), values[:, [1, 2, 3, 0]])
    assert in_order(pooled, ["b", "a"]) is pooled.values()


def build() -> DLRM:
    torch.manual_seed(1)
    tables = [
        EmbeddingBagConfig(name=f"t{i}", num_embeddings=9, embedding_dim=4, feature_names=names)
        for i, names in enumerate([["f1"], ["f0", "f2"]])
    ]
    return DLRM(EmbeddingBagCollection(tables=tables), 5, [8, 4], [6, 1])


def batch(rows: int) -> tuple[torch.Tensor, KeyedJaggedTensor]:
    lengths = torch.randint(0, 4, (3 * rows,))
    ids = torch.randint(0, 9, (int(lengths.sum()),))
    return torch.randn(rows, 5), KeyedJaggedTensor(keys=["f0", "f1", "f2"], values=ids, lengths=lengths)


def test_compiled_model_equals_the_original_by_parameter_name() -> None:
    original = build()
    compiled = copy.deepcopy(original)
    compile_dense(compiled)
    assert isinstance(compiled.over_arch, InteractionAndTop)
    assert isinstance(compiled.sparse_arch, OrderedSparseArch)
    assert compiled.state_dict().keys() == original.state_dict().keys()
    for rows in (6, 11):
        inputs = batch(rows)
        expected, result = original(*inputs), compiled(*inputs)
        torch.testing.assert_close(result, expected)
        for model, logits in ((original, expected), (compiled, result)):
            model.zero_grad()
            logits.square().sum().backward()
        theirs = dict(original.named_parameters())
        for name, parameter in compiled.named_parameters():
            torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=1e-5, atol=1e-6)


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ValueError, match="compiling must have a C\\+\\+ compiler: got 'no-such-compiler'"):
        compile_dense(build())
