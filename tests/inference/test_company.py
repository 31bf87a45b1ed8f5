"""What the other rows of a batch change in a row's prediction."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import torch
from torch import nn
from torchrec.models.dlrm import DLRM
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrm_torchrec.embeddings.config import TablesConfig
from dlrm_torchrec.embeddings.tables import build_tables
from dlrm_torchrec.inference.mlps.quantize import quantize_mlps
from dlrm_torchrec.inference.scoring import Scorer, script
from dlrm_torchrec.inference.tables.serve import serve_tables, table_weights
from dlrm_torchrec.schema import DatasetSpec, DenseFeature, SparseFeature

FEATURES, ROWS = 8, 512
BOUND = {"fp32": 1e-6, "static": 1e-3, "dynamic": 1e-3}  # docs/serving.md states them


@pytest.mark.parametrize("kind", ["fp32", "static", "dynamic"])
def test_company_changes_a_prediction_by_no_more_than_is_stated(kind: Literal["fp32", "static", "dynamic"]) -> None:
    torch.manual_seed(0)
    spec = DatasetSpec(
        name="company",
        label="click",
        dense=tuple(DenseFeature(name=f"d{i}") for i in range(13)),
        sparse=tuple(SparseFeature(name=f"s{i}", rows=1000) for i in range(FEATURES)),
    )
    tables = build_tables(spec.tables(32), TablesConfig(), torch.device("cpu"))
    tables.to_empty(device="cpu")
    for weight in table_weights(tables).values():
        nn.init.normal_(weight.data, std=0.3)
    model: nn.Module = DLRM(tables, 13, [256, 128, 32], [256, 128, 1]).eval()
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight)
    names = [feature.name for feature in spec.sparse]
    dense, ids = torch.randn(ROWS, 13), torch.randint(1000, (ROWS, FEATURES))
    lengths = torch.ones(FEATURES * ROWS, dtype=torch.int32)
    if kind != "fp32":
        model = serve_tables(model, tables, dict.fromkeys(table_weights(tables), "int8"), names)
        real = [(dense, KeyedJaggedTensor(keys=names, values=ids.T.reshape(-1), lengths=lengths))]
        model = quantize_mlps(model, kind, real if kind == "static" else ())
    served = script(Scorer(model, spec))

    def predicted(rows: torch.Tensor) -> np.ndarray:
        with torch.inference_mode():
            found = served(dense[rows], ids[rows].T.reshape(-1), lengths[: FEATURES * len(rows)])[0]
        return found[:, 0].double().numpy()

    whole = predicted(torch.arange(ROWS))
    assert whole.std() > 0.05
    draw = np.random.default_rng(0)
    worst = 0.0
    for _ in range(60):
        rows = draw.integers(0, ROWS, draw.integers(1, 40))
        worst = max(worst, np.abs(predicted(torch.from_numpy(rows)) - whole[rows]).max())
    assert (worst <= BOUND[kind]) == (kind != "dynamic")
