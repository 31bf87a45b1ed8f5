"""How many operators a step launches on the double of a GPU: they grow with groups of tables, and not with tables."""

from __future__ import annotations

import contextlib
from typing import get_args

import pytest
import torch
from torchrec.models.dlrm import DLRM

from dlrm_torchrec.embeddings.config import OperationName, TablesConfig, TablesKind
from dlrm_torchrec.embeddings.tables import build_tables
from dlrm_torchrec.schema import DatasetSpec, SparseFeature
from dlrm_torchrec.train.config import OptimizerConfig
from dlrm_torchrec.train.optimizers import optimize_tables_in_backward
from dlrm_torchrec.train.task import BinaryRankingTask
from tests.device.cases import DENSE, batch_of
from tests.device.double import META, Double
from tests.device.on_device import one_rank, shard, stand_in

# Criteo Kaggle's 26 columns with at most 999 rows, of which 18 are compositional; 32 tables of production models
ROWS = {"kaggle": [999] * 18 + [24, 3, 27, 10, 4, 18, 15, 105], "rm": [999] * 32}
DIM = 16
PLAIN = (17, 36)  # operators forward and backward of the model with plain tables
MOST = 30  # more operators of a group of compositional tables
ABOVE = {  # what needs more than that, and why
    "path": "ids are sorted by their networks, so that a block of ids has one network",
    "tensor_train": "ids are sorted by their second and by their third core",
    "hot_cold": "ids with rows of their own are told from the others",
    "hashes": "the bits of ids are mixed",
}
MORE = {  # than with plain tables, at most: forward and backward; lower them when you can
    ("kaggle", "quotient_remainder", "concat", 5): (25, 0),
    ("kaggle", "quotient_remainder", "feature_generation", 5): (25, 0),
    ("kaggle", "quotient_remainder", "add", 5): (30, 0),
    ("kaggle", "quotient_remainder", "mult", 5): (22, 6),
    ("kaggle", "quotient_remainder", "path", 5): (45, 18),
    ("kaggle", "mixed_radix", "tensor_train", 5): (61, 18),
    ("kaggle", "chinese_remainder", "mult", 5): (22, 6),
    ("kaggle", "hash", "add", 5): (14, 0),
    ("kaggle", "hot_cold", "concat", 5): (31, 0),
    ("kaggle", "hot_cold", "mult", 5): (28, 6),
    ("kaggle", "hashes", "add", 5): (47, 0),
    ("rm", "quotient_remainder", "add", 5): (30, 0),
    ("rm", "quotient_remainder", "mult", 5): (18, 5),
    ("rm", "quotient_remainder", "mult", 40): (23, 6),  # sums by class first
    ("rm", "quotient_remainder", "path", 5): (41, 17),
    ("rm", "mixed_radix", "tensor_train", 5): (57, 17),
}


def spec(shape: str) -> DatasetSpec:
    many = shape == "rm"
    sparse = [
        SparseFeature(name=f"f{number}", rows=rows, multi_hot=many, encoding="vocab")  # hot_cold needs vocabularies
        for number, rows in enumerate(ROWS[shape])
    ]
    return DatasetSpec(name=shape, label="click", dense=DENSE, sparse=tuple(sparse))


def operators(shape: str, config: TablesConfig, *, longest: int = 5) -> tuple[int, int]:
    """Operators of a model's forward and backward in its second step; the first creates constants."""
    data = spec(shape)
    with one_rank(), Double() as device:
        tables = build_tables(data.tables(dim=DIM), config, META)
        dlrm = DLRM(tables, len(data.dense), [8, DIM], [8, 1], dense_device=META)
        optimize_tables_in_backward(tables, OptimizerConfig(kind="sgd", lr=0.1))
        model = shard(BinaryRankingTask(dlrm, 1), tables, "table_wise", torch.optim.SGD).to(META)
        stand_in(model, device)
        for _ in range(2):
            batch = batch_of(data, longest=longest).to(META)
            device.clear()
            loss, _ = model(batch)
            forward = device.operators.total()
            loss.backward()
    return forward, device.operators.total() - forward


@pytest.fixture(autouse=True)
def _no_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # meta has none


def test_plain_tables() -> None:
    assert [operators(shape, TablesConfig()) for shape in ROWS] == [PLAIN, PLAIN]


@pytest.mark.parametrize(("shape", "kind", "operation", "longest"), MORE)
def test_compositional_tables(shape: str, kind: TablesKind, operation: OperationName, longest: int) -> None:
    partitions = 3 if operation == "tensor_train" else 2
    config = TablesConfig(kind=kind, operation=operation, collisions=4, partitions=partitions, hidden=8, threshold=200)
    forward, backward = operators(shape, config, longest=longest)
    most = MORE[shape, kind, operation, longest]
    assert (sum(most) > MOST) == (operation in ABOVE or kind in ABOVE)
    assert (forward - PLAIN[0] <= most[0], backward - PLAIN[1] <= most[1]) == (True, True)


def test_the_table_has_every_operation() -> None:
    assert {operation for _, _, operation, _ in MORE} == {*get_args(OperationName)} - {"auto"}
