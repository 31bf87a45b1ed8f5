"""Factorisation machine and DeepFM against the sum over all pairs of coordinates, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchrec.modules import deepfm
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrm_torchrec.models.factorization_machine import DeepFM, FactorizationMachine

ROWS, DIM, BATCH = (5, 7, 4), 8, 40
ONE_HOT = [[1] * BATCH] * len(ROWS)
BAGS = [
    [1] * BATCH,
    [0, 1, 2, 3] * (BATCH // 4),
    [2, 0, 0, 5, 1] * (BATCH // 5),
]  # the second and third have empty ones


def tables() -> EmbeddingBagCollection:
    collection = EmbeddingBagCollection(
        [
            EmbeddingBagConfig(name=f"t{i}", num_embeddings=rows, embedding_dim=DIM, feature_names=[f"f{i}"])
            for i, rows in enumerate(ROWS)
        ]
    )
    for weight in collection.parameters():
        nn.init.normal_(weight)
    return collection


def ids_of(lengths: list[list[int]]) -> KeyedJaggedTensor:
    """Random ids; there are few rows, so a bag often has an id twice."""
    values = [torch.randint(rows, (sum(bags),)) for rows, bags in zip(ROWS, lengths, strict=True)]
    return KeyedJaggedTensor(
        keys=[f"f{i}" for i in range(len(ROWS))], values=torch.cat(values), lengths=torch.tensor(lengths).flatten()
    )


def sum_over_pairs(
    model: FactorizationMachine, dense: torch.Tensor, ids: KeyedJaggedTensor, within_bags: bool
) -> torch.Tensor:
    """b + Σ w_i x_i + Σ_{i<j} <v_i, v_j> x_i x_j over all dense columns and rows of tables, in O(n²): (B, 1).

    Pairs of two rows of one table are counted only ``within_bags``.
    """
    weights = [bag.weight for bag in model.sparse_arch.embedding_bag_collection.embedding_bags.values()]
    rows = torch.cat([model.dense_arch.weight, *weights]).double()
    sizes = [1] * dense.shape[1] + list(ROWS)
    feature = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    apart = feature[:, None] != feature[None, :]
    logits = []
    for number in range(BATCH):
        counts = [torch.zeros(size, dtype=torch.float64) for size in ROWS]
        for count, name in zip(counts, ids.keys(), strict=True):
            for row in ids[name].to_dense()[number]:
                count[int(row)] += 1
        x = torch.cat([dense[number].double(), *counts])
        products = (rows[:, 1:] @ rows[:, 1:].T) * torch.outer(x, x)
        pairs = (products if within_bags else products * apart).triu(diagonal=1).sum()
        logits.append(model.inter_arch.bias.double() + rows[:, 0] @ x + pairs)
    return torch.stack(logits)


@pytest.mark.parametrize("columns", [3, 0])
@pytest.mark.parametrize("lengths", [ONE_HOT, BAGS], ids=["one-hot", "bags"])
def test_logits_are_the_sum_over_all_pairs(lengths: list[list[int]], columns: int) -> None:
    torch.manual_seed(0)
    model = FactorizationMachine(tables(), columns)
    nn.init.constant_(model.inter_arch.bias, 0.7)
    dense, ids = torch.randn(BATCH, columns), ids_of(lengths)
    expected = sum_over_pairs(
        model, dense, ids, within_bags=lengths is ONE_HOT
    )  # Rendle's own sum where it is the same
    torch.testing.assert_close(model(dense, ids).double(), expected, rtol=1e-4, atol=1e-4)


def test_pairs_within_a_bag_are_left_out() -> None:
    torch.manual_seed(0)
    model, dense, ids = FactorizationMachine(tables(), 2), torch.randn(BATCH, 2), ids_of(BAGS)
    whole = sum_over_pairs(model, dense, ids, within_bags=True)
    apart = (model(dense, ids).double() - whole).squeeze(1).abs() > 1e-3
    repeated = torch.tensor([any(bags[number] > 1 for bags in BAGS) for number in range(BATCH)])
    assert not apart[~repeated].any()
    assert apart[repeated].any()


def test_deepfm_adds_an_mlp_over_the_same_factors() -> None:
    torch.manual_seed(0)
    model, dense, ids = DeepFM(tables(), 3, [6, 1]), torch.randn(BATCH, 3), ids_of(BAGS)
    hidden, last = (layer for layer in model.over_arch.modules() if isinstance(layer, nn.Linear))
    pooled = model.sparse_arch.embedding_bag_collection(ids)
    vectors = [dense[:, i, None] * model.dense_arch.weight[i] for i in range(3)] + list(pooled.to_dict().values())
    factors = torch.cat([vector[:, 1:] for vector in vectors], dim=1).double()
    assert factors.shape == (BATCH, 6 * (DIM - 1))
    deep = (factors @ hidden.weight.double().T + hidden.bias.double()).clamp(min=0) @ last.weight.double().T + last.bias
    expected = sum_over_pairs(model, dense, ids, within_bags=False) + deep
    torch.testing.assert_close(model(dense, ids).double(), expected, rtol=1e-4, atol=1e-4)


def test_torchrecs_pairs_are_still_no_dot_products() -> None:
    orthogonal = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])  # <v_1, v_2> = 0
    assert deepfm.FactorizationMachine()([orthogonal]).item() == 1  # when it is 0, ours can go
