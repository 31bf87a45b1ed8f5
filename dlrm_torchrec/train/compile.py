"""DLRM with compiled dense parts: the same parameters, names and arithmetic with fewer passes over memory."""

from __future__ import annotations

import os
import shutil
from typing import Any

import torch
from torch import nn
from torchrec.models.dlrm import DLRM, InteractionArch, OverArch, SparseArch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

OF_COLLECTIONS = ("embedding_bag_configs", "embedding_configs")  # what only collections of tables have


def compile_dense(model: nn.Module) -> None:
    """Compile the children of ``model`` that hold no tables, in place; call it before the tables are sharded.

    Parameter names do not change, so a checkpoint can be loaded with or without compiling. The first step of each batch
    size takes seconds to minutes. A model with DLRM's own interaction gets ``DotInteraction``, which is compiled
    together with the top MLP.
    """
    sparse = getattr(model, "sparse_arch", None)
    if isinstance(sparse, SparseArch):
        model.sparse_arch = OrderedSparseArch(sparse.embedding_bag_collection)
    if isinstance(model, DLRM) and type(model.inter_arch) is InteractionArch:
        interaction = DotInteraction(model.inter_arch.F).to(model.inter_arch.triu_indices.device)
        model.inter_arch, model.over_arch = Pair(), InteractionAndTop(interaction, model.over_arch)
    for part in model.children():
        if not any(hasattr(module, name) for module in part.modules() for name in OF_COLLECTIONS):
            _compile(part)


def _compile(module: nn.Module) -> None:
    """Compile ``module`` in place; raises ValueError when there is no C++ compiler."""
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise ValueError(
            f"compiling must have a C++ compiler: got {compiler!r}, which was not found; install it or do not compile"
        )
    module.compile(dynamic=False)


class OrderedSparseArch(SparseArch):
    """A ``SparseArch`` that does not split and copy pooled embeddings if they are already in the features' order."""

    def forward(self, features: KeyedJaggedTensor) -> torch.Tensor:
        """(B, F, D) from F features of stride B."""
        pooled = self.embedding_bag_collection(features)
        return in_order(pooled, self.sparse_feature_names).reshape(-1, self.F, self.D)


@torch.fx.wrap  # TorchRec's pipelines trace the model with fx, which cannot follow the branch
def in_order(pooled: KeyedTensor, names: list[str]) -> torch.Tensor:
    """The pooled vectors (B, sum of dims) in the order of ``names``."""
    return pooled.values() if pooled.keys() == names else torch.cat([pooled[name] for name in names], dim=1)


class Pair(nn.Module):
    """Passes both inputs of the interaction on to ``InteractionAndTop``."""

    def forward(self, dense_features: torch.Tensor, sparse_features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return dense_features, sparse_features


class InteractionAndTop(nn.Module):
    """An ``OverArch`` with the same parameter names that includes the interaction, so there is one graph to compile."""

    def __init__(self, interaction: DotInteraction, over_arch: OverArch) -> None:
        super().__init__()
        self.interaction = interaction
        self.model = over_arch.model

    def forward(self, vectors: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """Logits (B, 1) from dense (B, D) and sparse (B, F, D)."""
        logits: torch.Tensor = self.model(self.interaction(*vectors))
        return logits


class DotInteraction(InteractionArch):
    """An ``InteractionArch`` with a cheaper backward: it saves a scatter and one of two matrix products."""

    def __init__(self, num_sparse_features: int) -> None:
        super().__init__(num_sparse_features)
        vectors = num_sparse_features + 1
        row, column = self.triu_indices
        pair = torch.full((vectors, vectors), len(row))  # the diagonal points to a padding column after all pairs
        pair[row, column] = pair[column, row] = torch.arange(len(row))
        self.register_buffer("upper", row * vectors + column, persistent=False)
        self.register_buffer("pair", pair.flatten(), persistent=False)

    def forward(self, dense_features: torch.Tensor, sparse_features: torch.Tensor) -> torch.Tensor:
        """(B, D + F + F choose 2) from (B, D) and (B, F, D)."""
        if self.F <= 0:
            return dense_features
        vectors = torch.cat((dense_features.unsqueeze(1), sparse_features.to(dense_features.dtype)), dim=1)
        dots = _PairwiseDots.apply(vectors, self.upper, self.pair)  # type: ignore[no-untyped-call]  # untyped in torch
        return torch.cat((dense_features, dots), dim=1)


class _PairwiseDots(torch.autograd.Function):
    """The upper triangle of V Vᵀ; its gradient by V is S V, where S is symmetric with a zero diagonal."""

    @staticmethod
    def forward(ctx: Any, vectors: torch.Tensor, upper: torch.Tensor, pair: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(vectors, pair)
        return torch.bmm(vectors, vectors.transpose(1, 2)).flatten(1).index_select(1, upper)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        vectors, pair = ctx.saved_tensors
        count = vectors.shape[1]
        symmetric = nn.functional.pad(gradient, (0, 1)).index_select(1, pair).view(-1, count, count)
        return torch.bmm(symmetric.to(vectors.dtype), vectors), None, None
