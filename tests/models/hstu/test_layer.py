"""The layer of HSTU against its equations, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dlrm_torchrec.models.hstu.attention.layout import make_layout
from dlrm_torchrec.models.hstu.config import HSTUConfig, Variant
from dlrm_torchrec.models.hstu.layer import EPS, HSTULayer, HSTULayers
from tests.models.hstu import loops

COUNTS = [(5, 1), (0, 0), (1, 0), (0, 2), (9, 3), (1, 1)]  # visible tokens and candidates
TOKENS = sum(map(sum, COUNTS))


def config(variant: Variant, **options: float) -> HSTUConfig:
    sizes = {"dim": 6, "heads": 3, "key_dim": 2, "value_dim": 4, "layers": 2, "most_tokens": 16, "dropout": 0.0}
    return HSTUConfig(variant=variant, **(sizes | options))  # type: ignore[arg-type]  # sizes are integers


def layout_of(counts: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    visible, candidates = zip(*counts, strict=True)
    return torch.tensor(visible), torch.tensor(candidates)


def norm(x: Tensor, layer: nn.LayerNorm) -> Tensor:
    centred = x - x.mean(1, keepdim=True)
    return centred / (centred.square().mean(1, keepdim=True) + EPS).sqrt() * layer.weight + layer.bias


def by_equation(layer: HSTULayer, x: Tensor, query_times: Tensor, key_times: Tensor) -> Tensor:
    """y of equations 1 to 3, or of the published code of dlrm_v4_hstu."""
    sizes, paper = layer.config, layer.config.variant == "paper"
    projected = norm(x, layer.norm_input) @ layer.project.weight.T + layer.project.bias
    activated = projected * torch.sigmoid(projected)
    values, keys = sizes.heads * sizes.value_dim, sizes.heads * sizes.key_dim
    u, rest = activated[:, :values], (activated if paper else projected)[:, values:]
    v, q, k = rest[:, :values], rest[:, values : values + keys], rest[:, values + keys :]
    bias = None
    if layer.bias is not None:
        bias = (layer.bias.places, layer.bias.times, query_times, key_times)
    attended = loops.attention(
        q.reshape(TOKENS, sizes.heads, -1), k.reshape(TOKENS, sizes.heads, -1), v.reshape(TOKENS, sizes.heads, -1),
        COUNTS, scale=1 if paper else sizes.key_dim**-0.5, divisor=sizes.most_tokens, bias=bias,
    ).flatten(1)  # fmt: skip
    gated = norm(attended, layer.norm_attended) * u
    if paper:
        return x + gated @ layer.output.weight.T + layer.output.bias
    return x + torch.cat([u, attended, gated], 1) @ layer.output.weight.T


@pytest.mark.parametrize("variant", ["paper", "mlperf"])
def test_a_layer_is_its_equation(variant: Variant) -> None:
    layer = HSTULayer(config(variant)).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn_like(parameter))
    x = torch.randn(TOKENS, 6, dtype=torch.float64, requires_grad=True)
    times = (torch.randint(10**6, (TOKENS,)), torch.randint(10**6, (TOKENS,)))
    found, expected = layer(x, make_layout(*layout_of(COUNTS)), *times), by_equation(layer, x, *times)
    torch.testing.assert_close(found, expected)
    weights, inputs = torch.randn_like(found), [x, *layer.parameters()]
    ours, theirs = (torch.autograd.grad((each * weights).sum(), inputs) for each in (found, expected))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("variant", ["paper", "mlperf"])
def test_tokens_depend_only_on_what_they_may_see(variant: Variant) -> None:
    layers, x = HSTULayers(config(variant)), torch.randn(TOKENS, 6)
    layout, times = make_layout(*layout_of(COUNTS)), torch.arange(TOKENS)
    start = sum(map(sum, COUNTS[:4]))  # of nine events and three candidates
    before = layers(x, layout, times, times)
    for changed in range(start, start + 12):
        other = x.clone()
        other[changed] = torch.randn(6)
        moved = {int(token) for token in (layers(other, layout, times, times) - before).abs().amax(1).nonzero()}
        is_event = changed < start + 9
        assert moved == (set(range(changed, start + 12)) if is_event else {changed})


def test_under_autocast_products_are_bfloat16_and_results_are_close() -> None:
    layers, x = HSTULayers(config("paper")), torch.randn(TOKENS, 6)
    layout, times = make_layout(*layout_of(COUNTS)), torch.arange(TOKENS)
    exact = layers(x, layout, times, times)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = layers(x, layout, times, times)
    rounded.sum().backward()
    assert not torch.equal(rounded, exact)
    torch.testing.assert_close(rounded, exact, rtol=0.05, atol=0.05)


def test_dropout_acts_in_training_only() -> None:
    layers, x = HSTULayers(config("mlperf", dropout=0.5)), torch.randn(TOKENS, 6)
    layout, times = make_layout(*layout_of(COUNTS)), torch.arange(TOKENS)
    assert not torch.equal(layers(x, layout, times, times), layers(x, layout, times, times))
    layers.eval()
    torch.testing.assert_close(layers(x, layout, times, times), layers(x, layout, times, times), rtol=0, atol=0)


def test_sizes_that_are_impossible_are_refused() -> None:
    with pytest.raises(ValueError, match="heads of HSTU must be at least 1: got 0; raise it"):
        config("paper", heads=0)
    with pytest.raises(ValueError, match=r"dropout of HSTU must be at least 0 and below 1: got 1\.0; 0 means none"):
        config("paper", dropout=1.0)
    with pytest.raises(ValueError, match=r"variant of HSTU must be one of .*: got 'other'; name one"):
        config("other")  # type: ignore[arg-type]  # on purpose
    with pytest.raises(ValueError, match="visible tokens and candidates must be counted once for each user"):
        make_layout(torch.ones(2), torch.ones(3))
    with pytest.raises(ValueError, match="numbers of tokens must be at least 0: got -1"):
        make_layout(torch.tensor([-1]), torch.tensor([1]))
