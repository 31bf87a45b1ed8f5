"""Every training recipe and every operation on meta tensors, which stand in for those of a GPU.

Whatever stays on the CPU fails, and so does whatever asks for a number.
"""

from __future__ import annotations

import contextlib

import pytest
import torch

from dlrm_torchrec.embeddings.compositional.collection import CompositionalEmbeddingBagCollection
from dlrm_torchrec.embeddings.compositional.operations import FeatureGeneration, Operation
from dlrm_torchrec.embeddings.compositional.sequences import CompositionalEmbeddingCollection
from dlrm_torchrec.embeddings.compositional.table_configs import CompositionalEmbeddingConfig, CompositionalTable
from tests.device.cases import OPERATIONS, Trained, batch_of, moved, of_operation, trained
from tests.device.double import META
from tests.recipe import load_recipe

# TorchRec takes no device for them; a recipe's DistributedDataParallel moves them to its GPU
MOVED_BY_DDP = ("model.inter_arch.triu_indices", "model.inter_arch.crossnet.")


def _bucketized(
    lengths: torch.Tensor,
    indices: torch.Tensor,
    bucketize_pos: bool,
    my_size: int,
    weights: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """The shapes of FBGEMM's results, which has no such kernel."""
    assert not bucketize_pos
    new_lengths = lengths.new_empty(my_size * lengths.numel())
    new_weights = None if weights is None else torch.empty_like(weights)
    return new_lengths, torch.empty_like(indices), new_weights, None


FAKE = torch.library.Library("fbgemm", "IMPL", "Meta")  # register_fake is only for FBGEMM's own modules
FAKE.impl("bucketize_sparse_features", _bucketized)


@pytest.fixture(autouse=True)
def _taken_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors on meta answer ``is_cuda`` as those of a GPU do; meta has no autocast."""
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda tensor: tensor.device == META))
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())


@pytest.mark.parametrize("case", trained(), ids=str)
def test_recipes(case: Trained) -> None:
    recipe = load_recipe(case.recipe)
    model, _ = recipe.build(case.config(recipe), case.spec, 1, META)
    tensors = [*model.named_parameters(), *model.named_buffers()]
    on_the_host = [name for name, tensor in tensors if tensor.device != META]
    assert [name for name in on_the_host if not name.startswith(MOVED_BY_DDP)] == []
    model.to(META)
    loss, (_, outputs, _) = model(batch_of(case.spec).to(META))
    assert loss.device == outputs.device == META
    loss.backward()
    for name, parameter in model.named_parameters():
        in_backward = hasattr(parameter, "_in_backward_optimizers")  # and then the gradient is gone
        assert in_backward or (parameter.grad is not None and parameter.grad.device == META), name


@pytest.mark.parametrize("operation", OPERATIONS, ids=str)
def test_operations(operation: Operation) -> None:
    for case in of_operation(operation):
        tables = CompositionalEmbeddingBagCollection(case.configs(), case.weights != "no", META)
        pooled = tables(moved(case.batch())).values()
        assert pooled.device == META, case
        pooled.square().sum().backward()
        assert all(parameter.grad is not None for parameter in tables.parameters()), case


@pytest.mark.parametrize("operation", [each for each in OPERATIONS if not isinstance(each, FeatureGeneration)], ids=str)
def test_vectors_of_single_ids(operation: Operation) -> None:
    case = of_operation(operation)[1]
    configs = [
        CompositionalEmbeddingConfig(
            name=config.name,
            num_embeddings=config.num_embeddings,
            embedding_dim=config.embedding_dim,
            feature_names=config.feature_names,
            partition=config.partition,
            operation=operation,
        )
        for config in case.configs()
        if isinstance(config, CompositionalTable)
    ]
    tables = CompositionalEmbeddingCollection(configs, META)
    found = torch.cat([each.values() for each in tables(moved(case.batch())).values()])
    assert found.device == META
    found.square().sum().backward()
    assert all(parameter.grad is not None for parameter in tables.parameters())
