"""Int8 layers in place of those of whole models."""

from __future__ import annotations

import io
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn
from torchrec.fx import Tracer
from torchrec.models.deepfm import SimpleDeepFMNN
from torchrec.models.dlrm import DLRM, DLRM_DCN
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.modules.mlp import MLP
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrm_torchrec.inference.mlps.input_ranges import InputStatistics
from dlrm_torchrec.inference.mlps.linear import ColumnScales, DynamicLinear, Int8Linear, quantize_weight
from dlrm_torchrec.inference.mlps.outliers import SplitLinear
from dlrm_torchrec.inference.mlps.quantize import MLPType, mlp_bytes, quantize_mlps
from dlrm_torchrec.models.dlrm_cat import DLRMCat
from dlrm_torchrec.models.factorization_machine import DeepFM
from dlrm_torchrec.models.neumf import NeuMF

FEATURES, DIM, DENSE = 3, 32, 5


def tables() -> EmbeddingBagCollection:
    configs = [
        EmbeddingBagConfig(name=f"t{n}", embedding_dim=DIM, num_embeddings=50, feature_names=[f"f{n}"])
        for n in range(FEATURES)
    ]
    return EmbeddingBagCollection(tables=configs, device=torch.device("cpu"))


def inputs(rows: int, seed: int = 0) -> tuple[torch.Tensor, KeyedJaggedTensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(50, (FEATURES * rows,), generator=generator)
    keys = [f"f{n}" for n in range(FEATURES)]
    sparse = KeyedJaggedTensor.from_lengths_sync(keys=keys, values=ids, lengths=torch.ones_like(ids).int())
    return torch.randn(rows, DENSE, generator=generator), sparse


# each with the number of its layers that become int8
MODELS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "dlrm": (lambda: DLRM(tables(), DENSE, [64, DIM], [64, 16, 1]), 2),
    "dcn": (lambda: DLRM_DCN(tables(), DENSE, [128, 64, DIM], [64, 16, 1], 2, 8), 4),
    "cat": (lambda: DLRMCat(tables(), DENSE, [64, DIM], [64, 16, 1]), 3),
    "deepfm of torchrec": (lambda: SimpleDeepFMNN(DENSE, tables(), 64, 16), 2),
    "deepfm": (lambda: DeepFM(tables(), DENSE, [64, 16, 1]), 2),
}


@pytest.mark.parametrize("outliers", [0.0, 0.01])
@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("name", MODELS)
def test_models_keep_their_predictions(name: str, kind: MLPType, outliers: float) -> None:
    torch.manual_seed(0)
    model = MODELS[name][0]()
    before = model(*inputs(40))
    int8 = quantize_mlps(model, kind, [inputs(200, seed=1), inputs(100, seed=2)], outliers=outliers)
    assert sum(isinstance(part, Int8Linear) for part in int8.modules()) == MODELS[name][1]
    assert sum(isinstance(part, SplitLinear) for part in int8.modules()) == MODELS[name][1] * bool(outliers)
    after = int8(*inputs(40))
    assert not torch.equal(after, before)
    assert (after - before).norm() < 0.05 * before.norm()


def test_the_float_model_stays_and_shares_its_tables() -> None:
    model = MODELS["dlrm"][0]()
    before, structure = model(*inputs(7)), repr(model)
    int8 = quantize_mlps(model, "static", [inputs(50)])
    assert torch.equal(model(*inputs(7)), before)
    assert repr(model) == structure
    assert int8.sparse_arch is model.sparse_arch
    assert not any(part._forward_pre_hooks for part in model.modules())


def mlp(*sizes: int) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [part for sizes in pairwise(sizes) for part in (nn.Linear(*sizes), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def test_a_chain_of_static_layers_is_integer_arithmetic_layer_by_layer() -> None:
    model, calibration = mlp(64, 96, 80, 8), torch.randn(200, 64)
    given = torch.randn(30, 64) * 1.2
    hidden, expected = calibration, given.double()
    for layer in (part.requires_grad_(False) for part in model if isinstance(part, nn.Linear)):
        low, high = min(float(hidden.min()), 0.0), max(float(hidden.max()), 0.0)
        step = (high - low) / 255
        zero = round(-low / step)
        levels, scales = quantize_weight(layer.weight, 7)
        quantized = (expected / step).round().long().add(zero).clamp(0, 255) - zero
        expected = (quantized @ levels.long().T) * (step * scales.double()) + layer.bias.double()
        hidden = layer(hidden)
        if layer is not model[-1]:
            expected, hidden = expected.relu(), hidden.relu()
    int8 = quantize_mlps(model, "static", [(calibration[:150],), (calibration[:0],), (calibration[150:],)])
    found = int8(given).double()
    # float32 may round a hidden number next to the middle of two levels to the other one, which moves all of its row
    assert torch.isclose(found, expected, rtol=1e-5, atol=1e-5).all(dim=1).sum() >= 27
    torch.testing.assert_close(found, expected, rtol=0, atol=0.01)


@pytest.mark.parametrize("model", [mlp(64, 96, 8), MLP(64, [96, 8])])
def test_a_relu_is_part_of_the_layer_before_it(model: nn.Module) -> None:
    int8 = quantize_mlps(model, "dynamic")
    layers = [part for part in int8.modules() if isinstance(part, DynamicLinear)]
    assert [layer.relu for layer in layers] == [True, isinstance(model, MLP)]
    assert not any(isinstance(part, nn.ReLU) for part in int8.modules())


def test_other_activations_stay() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(MLP(64, [64], activation="sigmoid"), MLP(64, [64], activation="swish_layernorm"))
    int8 = quantize_mlps(model, "dynamic")
    given = torch.randn(9, 64)
    assert sum(isinstance(part, DynamicLinear) and not part.relu for part in int8.modules()) == 2
    torch.testing.assert_close(int8(given), model(given), rtol=0.05, atol=0.05)


def test_a_model_may_be_one_layer_or_have_none_that_gains() -> None:
    assert isinstance(quantize_mlps(nn.Linear(64, 8), "dynamic"), DynamicLinear)
    for narrow in (nn.Linear(63, 100), nn.Linear(100, 7), NeuMF(8, [32, 16, 8])):
        assert quantize_mlps(narrow, "static") is narrow


def test_inputs_with_long_tails_get_a_scale_per_column() -> None:
    """One step for all columns would be as large as most columns; with one step each, the noise is uniform rounding."""
    torch.manual_seed(0)
    ranges = 2.0 ** torch.arange(64).remainder(9)
    given = (torch.rand(4000, 64) * 2 - 1) * ranges
    given[given.abs() < 0.99 * ranges] *= 0.02
    layer = nn.Linear(64, 32)
    model = nn.Sequential(layer)
    int8 = quantize_mlps(model, "static", [(given,)])
    assert isinstance(int8.get_submodule("0.0"), ColumnScales)
    error = int8(given).double() - model(given)
    steps = 2 * ranges.double() / 255
    inputs_noise = layer.weight.double().square() @ (steps**2 / 12)
    _, scales = quantize_weight(layer.weight * ranges, 7)
    weights_noise = scales.double() ** 2 / 12 * (given / ranges).square().sum(dim=1).mean()
    assert (error.square().mean(dim=0) < 1.5 * (inputs_noise + weights_noise)).all()


def test_a_column_that_calibration_saw_little_of_keeps_room() -> None:
    statistics = InputStatistics(columns=2)
    for rows in (torch.zeros(5000, 2), torch.tensor([[3.0, 1e-3], [-70.0, 0.0]])):
        statistics(nn.Identity(), (rows,))
    scales = statistics.column_scales()
    assert scales is not None
    torch.testing.assert_close(scales, torch.tensor([70.0, ((3**2 + 70**2) / (2 * 5002)) ** 0.5]))
    statistics(nn.Identity(), (torch.full((5000, 2), 70.0),))
    assert statistics.column_scales() is None


@pytest.mark.parametrize("outliers", [0.0, 0.01])
@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_traced_and_scripted_models_are_bit_equal_after_loading(kind: MLPType, outliers: float) -> None:
    given = torch.randn(20, 64).exp() ** 3  # one of long tails
    int8 = quantize_mlps(mlp(64, 96, 80, 8, 1), kind, [(given,)], outliers=outliers)
    traced = torch.fx.GraphModule(int8, Tracer(leaf_modules=[]).trace(int8))
    stream = io.BytesIO()
    torch.jit.save(torch.jit.script(traced), stream)
    stream.seek(0)
    loaded = torch.jit.load(stream)
    for rows in (20, 1, 0):
        assert torch.equal(loaded(given[:rows]), int8(given[:rows]))


def test_bytes_are_those_of_the_weights_as_stored() -> None:
    model = mlp(64, 96, 1)
    assert mlp_bytes(model) == 4 * (64 * 96 + 96 + 96 + 1)
    narrow = 4 * (96 + 1)
    dense = 64 * 96 + 96 * (8 + 8 + 4)  # levels; a scale, a zero point and a bias per row
    assert mlp_bytes(quantize_mlps(model, "dynamic")) == dense + narrow
    sparse = round(0.01 * 64 * 96) * (8 + 4) + 97 * 8  # columns and values; offsets
    assert mlp_bytes(quantize_mlps(model, "dynamic", outliers=0.01)) == dense + narrow + sparse


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("int4", {}, "kind of int8 layers must be one of dynamic, static: got 'int4'"),
        ("dynamic", {"bits": 8}, "bits of the weights must be 4 to 7: got 8"),
        ("dynamic", {"bits": 3}, "bits of the weights must be 4 to 7: got 3"),
        ("dynamic", {"outliers": 1.0}, "outliers must be a share of the weights, 0 to 1: got 1.0"),
        ("static", {}, "calibration must give every layer finite inputs: got no rows for Linear"),
        ("static", {"calibration": [(torch.randn(0, 64),)]}, "got no rows"),
        ("static", {"calibration": [(torch.full((2, 64), torch.nan),)]}, "got infinite numbers or nan for Linear"),
    ],
)
def test_what_cannot_be_done_is_refused(kind: MLPType, options: dict[str, Any], message: str) -> None:
    model = mlp(64, 8)
    with pytest.raises(ValueError, match=message):
        quantize_mlps(model, kind, **options)
    assert not model[0]._forward_pre_hooks


def test_a_model_elsewhere_than_on_the_cpu_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model must be on the CPU: got Linear\(.*\) on meta; move it with .cpu\(\)"):
        quantize_mlps(mlp(64, 8).to("meta"), "dynamic")
