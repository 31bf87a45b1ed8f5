"""Grouped linear layers against one product per vector."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dlrm_torchrec.embeddings.compositional.paths.grouped import Layers, block_size, grouped_linear


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


def stored(networks: Layers) -> torch.Tensor:
    """All numbers of each network in one column."""
    return torch.cat([each.flatten(1) for layer in networks for each in layer if each is not None], dim=1).unsqueeze(2)


def split(networks: Layers, columns: torch.Tensor) -> Layers:
    """The layers of ``columns``, which lie as in ``stored``."""
    shapes = [each.shape[1:] for layer in networks for each in layer if each is not None]
    parts = iter(columns.squeeze(2).split([shape.numel() for shape in shapes], dim=1))
    return [
        (next(parts).unflatten(1, weight.shape[1:]), None if bias is None else next(parts)) for weight, bias in networks
    ]


def assert_equal_to_loop(counts: list[int], widths: list[int], bias: bool) -> None:
    torch.manual_seed(0)
    classes = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    classes = classes[torch.randperm(len(classes))]
    vectors = torch.randn(len(classes), widths[0], dtype=torch.float64, requires_grad=True)
    networks = layers(len(counts), widths, bias)
    found = grouped_linear(vectors, classes, stored(networks), partial(split, networks))
    expected = one_by_one(vectors, classes, networks)
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


@pytest.mark.parametrize(("num_vectors", "num_classes", "rows"), [(0, 3, 9), (50, 9, 4), (10**6, 128, 130)])
def test_copies_of_networks_need_as_much_memory_as_spare_places(num_vectors: int, num_classes: int, rows: int) -> None:
    block = block_size(num_vectors, num_classes, rows)
    assert block % 32 == 0
    copies, spare = num_vectors / block * rows, num_classes * block
    assert block == 32 or copies / 2 < spare <= copies
