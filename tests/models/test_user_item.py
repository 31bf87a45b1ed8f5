"""Matrix factorisation and NeuMF against their formulas in float64."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from torch import nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrm_torchrec.models.matrix_factorization import MatrixFactorization
from dlrm_torchrec.models.neumf import NeuMF
from dlrm_torchrec.models.user_item import UserItemModel

ROWS = {"user": 13, "movie": 7}


def tables(dim: int, rows: dict[str, int] = ROWS) -> EmbeddingBagCollection:
    return EmbeddingBagCollection(
        tables=[
            EmbeddingBagConfig(name=f"t_{name}", num_embeddings=count, embedding_dim=dim, feature_names=[name])
            for name, count in rows.items()
        ]
    )


def model(score: nn.Module, dim: int) -> UserItemModel:
    """The model with random parameters, including biases."""
    made = UserItemModel(tables(dim), "user", "movie", score)
    generator = torch.Generator().manual_seed(0)
    for parameter in made.parameters():
        nn.init.normal_(parameter, generator=generator)
    return made


def pairs(count: int) -> tuple[np.ndarray, np.ndarray, KeyedJaggedTensor]:
    """Users and items of some rows, and a KJT that has other features, too."""
    random = np.random.default_rng(1)
    users, items = (random.integers(0, rows, count) for rows in ROWS.values())
    lengths = np.concatenate([random.integers(0, 4, count), np.ones(count, int), np.ones(count, int)])
    tags = random.integers(0, 99, lengths[:count].sum())
    features = KeyedJaggedTensor(
        keys=["tags", "movie", "user"],
        values=torch.from_numpy(np.concatenate([tags, items, users])),
        lengths=torch.from_numpy(lengths),
    )
    return users, items, features


def weights(module: nn.Module) -> dict[str, np.ndarray]:
    return {name: value.detach().double().numpy() for name, value in module.named_parameters()}


def test_matrix_factorization_is_its_formula() -> None:
    made = model(MatrixFactorization(), 8)
    users, items, features = pairs(50)
    w = weights(made)
    p, q = w["tables.embedding_bags.t_user.weight"][users], w["tables.embedding_bags.t_movie.weight"][items]
    expected = [
        w["score.mean"][0] + u[7] + i[7] + sum(u[f] * i[f] for f in range(7)) for u, i in zip(p, q, strict=True)
    ]
    logits = made(torch.empty(50, 0), features)
    assert logits.shape == (50, 1)
    np.testing.assert_allclose(logits.detach().numpy()[:, 0], expected, rtol=1e-5, atol=1e-5)


def test_neumf_is_its_formula() -> None:
    score = NeuMF(4, (8, 6, 2))
    made = model(score, score.table_dim)
    users, items, features = pairs(50)
    w = weights(made)
    p, q = w["tables.embedding_bags.t_user.weight"][users], w["tables.embedding_bags.t_movie.weight"][items]
    layers = [value for name, value in w.items() if name.startswith("score.mlp")]
    expected = []
    for u, i in zip(p, q, strict=True):
        hidden = np.concatenate([u[4:], i[4:]])
        for matrix, bias in zip(layers[::2], layers[1::2], strict=True):
            hidden = np.maximum(0, matrix @ hidden + bias)
        last = np.concatenate([u[:4] * i[:4], hidden])
        expected.append((w["score.output.weight"] @ last + w["score.output.bias"])[0])
    assert score.table_dim == 8
    np.testing.assert_allclose(
        made(torch.empty(50, 0), features).detach().numpy()[:, 0], expected, rtol=1e-5, atol=1e-5
    )


def test_mlperfs_sizes() -> None:
    score = NeuMF(64, (256, 256, 128, 64))
    assert score.table_dim == 192
    assert sum(parameter.numel() for parameter in score.parameters()) == 107_073
    glorot = (6 / (256 + 256)) ** 0.5
    first, last = next(score.mlp.parameters()), score.output.weight
    assert 0.99 * glorot < first.abs().max() <= glorot
    assert 0.9 * (3 / 128) ** 0.5 < last.abs().max() <= (3 / 128) ** 0.5
    assert score.output.bias.abs().max() == 0


def test_what_is_refused() -> None:
    message = (
        "tables must give one vector for the user 'user' and one for the item 'film': got features ['movie', 'user']; "
        "name two"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        UserItemModel(tables(8), "user", "film", MatrixFactorization())
    for widths in ((7, 4), (8,)):
        message = f"widths of the MLP must be an even input width and at least one layer: got {widths}; try 32 16 8"
        with pytest.raises(ValueError, match=re.escape(message)):
            NeuMF(4, widths)
