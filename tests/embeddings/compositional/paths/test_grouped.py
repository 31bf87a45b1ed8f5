"""Grouped linear layers against one product per vector."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dlrm_torchrec.embeddings.compositional.paths.grouped import grouped_linear

Layers = list[tuple[torch.Tensor, torch.Tensor | None]]


def layers(num_classes: int, widths: list[int], bias: bool) -> Layers:
    return [
        (
            torch.randn(num_classes, one, other, dtype=torch.float64, requires_grad=True),
            torch.randn(num_classes, other, dtype=torch.float64, requires_grad=True) if bias else None,
        )
        for one, other in pairwise(widths)
    ]


def one_by_one(vectors: torch.Tensor, classes: torch.Tensor, networks: Layers) -> torch.Tensor:
    rows = []
    for vector, number in zip(vectors, classes.tolist(), strict=True):
        for depth, (weight, bias) in enumerate(networks):
            vector = vector.clamp(min=0) if depth else vector
            vector = vector @ weight[number] + (0 if bias is None else bias[number])
        rows.append(vector)
    return torch.stack(rows) if rows else vectors.new_zeros(0, networks[-1][0].size(2))


def assert_equal_to_loop(counts: list[int], widths: list[int], bias: bool) -> None:
    torch.manual_seed(0)
    classes = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    classes = classes[torch.randperm(len(classes))]
    vectors = torch.randn(len(classes), widths[0], dtype=torch.float64, requires_grad=True)
    networks = layers(len(counts), widths, bias)
    found, expected = grouped_linear(vectors, classes, networks), one_by_one(vectors, classes, networks)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    towards = torch.randn_like(expected)
    parameters = [vectors, *(each for layer in networks for each in layer if each is not None)]
    gradients = torch.autograd.grad(found, parameters, towards)
    if len(classes):
        wanted = torch.autograd.grad(expected, parameters, towards)
        torch.testing.assert_close(gradients, wanted, rtol=1e-10, atol=1e-10)
    assert all(torch.isfinite(each).all() for each in gradients)


@pytest.mark.parametrize("bias", [False, True], ids=["no-bias", "bias"])
@pytest.mark.parametrize("widths", [[4, 3], [4, 7, 4], [2, 5, 1, 3]], ids=["one", "two", "three"])
@pytest.mark.parametrize(
    "counts",
    [[0], [1], [32], [33], [0, 0, 0], [0, 97, 0], [31, 32, 33, 0, 64, 65], [1] * 70, [0, 0, 1]],
    ids=lambda counts: "-".join(map(str, counts[:6])),
)
def test_each_vector_goes_through_the_network_of_its_class(counts: list[int], widths: list[int], bias: bool) -> None:
    assert_equal_to_loop(counts, widths, bias)


@settings(max_examples=30, deadline=None)
@given(counts=st.lists(st.integers(0, 70), min_size=1, max_size=6), bias=st.booleans())
def test_any_counts(counts: list[int], bias: bool) -> None:
    assert_equal_to_loop(counts, [3, 2, 3], bias)
