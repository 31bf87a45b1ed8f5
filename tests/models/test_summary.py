"""The summary of a model against counts of its operators, its parameters and its optimizers' states."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchrec.models.dlrm import DLRM, DLRM_DCN
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.optim import RowWiseAdagrad
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrm_torchrec.embeddings.config import TablesConfig
from dlrm_torchrec.embeddings.tables import Tables, build_sequence_tables, build_tables
from dlrm_torchrec.models.dlrm_cat import DLRMCat
from dlrm_torchrec.models.factorization_machine import DeepFM, FactorizationMachine
from dlrm_torchrec.models.heads import add_heads
from dlrm_torchrec.models.logistic_regression import DIM, LogisticRegression
from dlrm_torchrec.models.matrix_factorization import MatrixFactorization
from dlrm_torchrec.models.neumf import NeuMF
from dlrm_torchrec.models.summary import ModelSummary, describe_model
from dlrm_torchrec.models.user_item import UserItemModel
from dlrm_torchrec.schema import DatasetSpec, DenseFeature, SparseFeature

BATCH = 6


def spec(features: int = 4, dense: int = 5) -> DatasetSpec:
    """A data set of random rows and bags, the same number of ids in every bag of a feature."""
    draw = random.Random(7)
    sparse = [
        SparseFeature(name=f"f{i}", rows=draw.randrange(300, 900), multi_hot=i > 1, pooling_factor=1.0 + 2 * (i > 1))
        for i in range(features)
    ]
    columns = tuple(DenseFeature(name=f"d{i}") for i in range(dense))
    return DatasetSpec(name="x", label="y", dense=columns, sparse=tuple(sparse))


def of_products(*shapes: Any, out_shape: Any, **_: Any) -> int:
    """The products of two tensors' numbers; those by a constant do not count."""
    return math.prod(out_shape) if all(isinstance(shape, Sequence) for shape in shapes[:2]) else 0


def of_squares(*_: Any, out_shape: Any) -> int:
    return math.prod(out_shape)


def of_bags(weight: Sequence[int], rows: Sequence[int], *_: Any, **__: Any) -> int:
    """The elements of the rows that bags sum."""
    return rows[0] * weight[1]


BAGS = ("_embedding_bag", "_embedding_bag_forward_only")
COUNTED = {torch.ops.aten.mul: of_products, torch.ops.aten.pow: of_squares} | {
    getattr(torch.ops.aten, name): of_bags for name in BAGS
}


def run(model: nn.Module, data: DatasetSpec) -> tuple[dict[str, float], float, float]:
    """What one sample takes on a real forward: matrix products by child, other products, and elements of rows."""
    for module in model.modules():
        if isinstance(module, EmbeddingBagCollection):
            module.to_empty(device="cpu")
            for weight in module.parameters():
                nn.init.uniform_(weight, -0.1, 0.1)
    lengths = [int(feature.pooling_factor) for feature in data.sparse for _ in range(BATCH)]
    values = [torch.randint(feature.rows, (BATCH * int(feature.pooling_factor),)) for feature in data.sparse]
    ids = KeyedJaggedTensor([f.name for f in data.sparse], torch.cat(values), lengths=torch.tensor(lengths))
    counter = FlopCounterMode(display=False, depth=2, custom_mapping=COUNTED)
    with torch.no_grad(), counter:
        model(torch.randn(BATCH, len(data.dense)), ids)
    found = counter.get_flop_counts()

    def matrix_products(module: str) -> float:
        return sum(count for name, count in found.get(module, {}).items() if name not in COUNTED) / 2 / BATCH

    def others(*names: Any) -> float:
        return sum(found["Global"].get(name, 0) for name in names) / BATCH

    by_child = {name: matrix_products(f"{type(model).__name__}.{name}") for name, _ in model.named_children()}
    row_elements = others(*(getattr(torch.ops.aten, name) for name in BAGS))
    return by_child, others(torch.ops.aten.mul, torch.ops.aten.pow), row_elements


def dlrm(kind: Any, dense: int = 5) -> Callable[[Tables], nn.Module]:
    def build(tables: Tables) -> nn.Module:
        model: nn.Module = kind(tables, dense, [12, 8], [16, 4, 1])
        return model

    return build


def two_heads(tables: Tables) -> nn.Module:
    model = DLRM(tables, 5, [12, 8], [16, 4, 1])
    add_heads(model, [0.0, 1.0])
    return model


def cross(tables: Tables) -> nn.Module:
    return DLRM_DCN(tables, 5, [12, 8], [16, 1], 3, 6)


MODELS: dict[str, tuple[Callable[[Tables], nn.Module], int, int]] = {  # how to build each, its dim, its features
    "DLRM": (dlrm(DLRM), 8, 4),
    "DLRM of concatenated vectors": (dlrm(DLRMCat), 8, 4),
    "DLRM of two labels": (two_heads, 8, 4),
    "DLRM-DCNv2": (cross, 8, 4),
    "factorisation machine": (lambda tables: FactorizationMachine(tables, 5), 8, 4),
    "DeepFM": (lambda tables: DeepFM(tables, 5, [16, 1]), 8, 4),
    "logistic regression": (lambda tables: LogisticRegression(tables, 5), DIM, 4),
    "matrix factorisation": (lambda tables: UserItemModel(tables, "f0", "f1", MatrixFactorization()), 8, 2),
    "NeuMF": (lambda tables: UserItemModel(tables, "f0", "f1", NeuMF(4, [8, 6, 3])), 8, 2),
}


def summary_of(name: str, config: TablesConfig | None = None) -> tuple[ModelSummary, nn.Module, DatasetSpec]:
    build, dim, features = MODELS[name]
    data = spec(features)
    tables = build_tables(data.tables(dim=dim), config)
    model = build(tables)
    return describe_model(model, tables, data, sparse="rowwise_adagrad", dense="adam"), model, data


@pytest.mark.parametrize("name", MODELS)
def test_multiply_adds_are_those_of_a_real_forward(name: str) -> None:
    summary, model, data = summary_of(name)
    by_child, products, row_elements = run(model, data)
    assert summary.uncounted == []
    dense = {part.name: part.multiply_adds for part in summary.parts if part.name != "tables"}
    assert sum(dense.values()) == pytest.approx(sum(by_child.values()) + products)
    if not products:  # part by part
        assert list(dense.values()) == pytest.approx(list(by_child.values())[1:])
    (held,) = [part for part in summary.parts if part.name == "tables"]
    assert held.multiply_adds == pytest.approx(row_elements)
    assert held.moved_bytes == 4 * held.multiply_adds


@pytest.mark.parametrize(
    "config",
    [
        TablesConfig(kind="quotient_remainder", operation="concat", threshold=0),
        TablesConfig(kind="quotient_remainder", operation="add", threshold=400),
        TablesConfig(kind="quotient_remainder", operation="feature_generation", threshold=0),
        TablesConfig(kind="hash", threshold=0),
        TablesConfig(kind="mixed_dimension", alpha=1.0),
    ],
    ids=lambda config: f"{config.kind} {config.operation}",
)
def test_rows_that_compressed_tables_read_are_those_of_a_real_forward(config: TablesConfig) -> None:
    summary, model, data = summary_of("DLRM", config)
    by_child, _, row_elements = run(model, data)
    assert [part.multiply_adds for part in summary.parts][1:] == pytest.approx(list(by_child.values())[1:])
    projections = by_child["sparse_arch"]
    assert (projections > 0) == (config.kind == "mixed_dimension")
    assert summary.parts[0].multiply_adds == pytest.approx(row_elements + projections)


@pytest.mark.parametrize(("hidden", "operation"), [(0, "path"), (6, "path"), (6, "mult"), (0, "tensor_train")])
def test_products_of_paths_and_of_mult(hidden: int, operation: Any) -> None:
    config = TablesConfig(kind="quotient_remainder", operation=operation, threshold=0, hidden=hidden)
    summary, _, data = summary_of("DLRM", config)
    ids = sum(feature.pooling_factor for feature in data.sparse)
    network = 2 * 8 * hidden if hidden else 8 * 8
    if operation == "tensor_train":
        network = 2 * 4 * 4  # 2 x 4 numbers times a 4 x 4 core
    of_an_id = 2 * 8 if operation == "mult" else 8 + network
    assert summary.parts[0].multiply_adds == pytest.approx(ids * of_an_id)


@pytest.mark.parametrize("name", MODELS)
def test_parameters_and_bytes_are_those_that_are_stored(name: str) -> None:
    config = TablesConfig(kind="quotient_remainder", operation="add", threshold=500, data_type="fp16")
    summary, model, _ = summary_of(name, config)
    assert sum(part.parameters for part in summary.parts) == sum(each.numel() for each in model.parameters())
    stored = {name: table["rows"] * table["dim"] for name, table in summary.tables.items()}
    (held,) = [part for part in summary.parts if part.name == "tables"]
    assert held.parameters == sum(stored.values())
    assert held.weight_bytes == 2 * held.parameters
    assert {table["element_bytes"] for table in summary.tables.values()} == {2}
    json.dumps(summary.to_json())


def test_moments_are_those_that_optimizers_keep() -> None:
    summary, model, data = summary_of("DLRM-DCNv2")
    run(model, data)
    sizes = []
    for kind, parameters in ((RowWiseAdagrad, model.sparse_arch.parameters()), (torch.optim.Adam, None)):  # type: ignore[union-attr]
        own = list(parameters) if parameters else [p for n, p in model.named_parameters() if "sparse_arch" not in n]
        optimizer = kind(own, lr=0.1)
        for parameter in own:
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        states = [value for state in optimizer.state.values() for name, value in state.items() if name != "step"]
        sizes.append(sum(value.numel() * value.element_size() for value in states))
    assert [summary.parts[0].moment_bytes, sum(part.moment_bytes for part in summary.parts[1:])] == sizes


def test_a_module_without_a_formula_is_named() -> None:
    data = spec()
    tables = build_tables(data.tables(dim=8))
    model = DLRM(tables, 5, [12, 8], [16, 1])
    model.over_arch = nn.Sequential(nn.LayerNorm(8 + 4 + 6), nn.Linear(18, 1))
    summary = describe_model(nn.Sequential(model), tables, data, sparse="sgd", dense="sgd")
    assert summary.uncounted == ["LayerNorm"]
    assert str(summary).endswith("of the multiply-adds; not counted: LayerNorm")
    assert sum(part.moment_bytes for part in summary.parts) == 0


def test_embeddings_hold_the_parameters_and_mlps_the_compute() -> None:
    features = tuple(SparseFeature(name=f"f{i}", rows=10**7) for i in range(26))
    data = DatasetSpec(name="x", label="y", dense=tuple(DenseFeature(name=f"d{i}") for i in range(13)), sparse=features)
    tables = build_tables(data.tables(dim=64))
    meta = torch.device("meta")
    model = DLRM(tables, 13, [512, 256, 64], [512, 256, 1], dense_device=meta)
    lines = str(describe_model(model, tables, data, sparse="sgd", dense="sgd")).splitlines()
    assert len(lines) <= 12
    assert all(len(line) <= 120 for line in lines)
    assert lines[1].split()[:3] == ["tables", f"{26 * 64 * 10**7:,}", "66.6"]
    assert lines[-1] == ("tables hold 100.0% of the parameters, and the other parts do 99.7% of the multiply-adds")


def test_tables_of_single_ids() -> None:
    """They are read as pooled ones; two rows for each id of a product."""
    data = spec(features=2)
    config = TablesConfig(kind="quotient_remainder", threshold=0)
    tables = build_sequence_tables(data.tables(DIM), config)
    model = nn.ModuleDict({"history": tables, "top": nn.Linear(3, 2)})
    summary = describe_model(model, model, data, sparse="adagrad", dense="adam")
    held, top = summary.parts
    assert held.name == "tables"
    assert held.parameters == sum(weight.numel() for weight in tables.parameters())
    assert held.moment_bytes == 4 * held.parameters
    assert held.multiply_adds == 2 * DIM * sum(feature.pooling_factor for feature in data.sparse)
    assert (top.name, top.moment_bytes) == ("top", 2 * 4 * (3 * 2 + 2))
