"""Packages of managed tables answer raw values as the trained model does, also after deltas, whose bytes are few."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchrec.models.dlrm import DLRM
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrm_torchrec.embeddings.config import TablesConfig
from dlrm_torchrec.embeddings.managed.collection import ManagedEmbeddingBagCollection
from dlrm_torchrec.embeddings.tables import build_tables
from dlrm_torchrec.inference.deltas.live import prepare_update
from dlrm_torchrec.inference.deltas.offline import apply_deltas, make_delta
from dlrm_torchrec.inference.package import Release, write_package
from dlrm_torchrec.inference.predictor import Predictor
from dlrm_torchrec.inference.scoring import Scorer, script
from dlrm_torchrec.inference.tables.serve import serve_tables
from dlrm_torchrec.schema import DatasetSpec, DenseFeature, SparseFeature

DIM = 8
SPEC = DatasetSpec(
    name="endless",
    label="click",
    dense=(DenseFeature(name="a"),),
    sparse=(
        SparseFeature(name="user", rows=9_000, encoding="managed"),  # its map lies in a file of its own
        SparseFeature(name="shop", rows=600, encoding="managed", multi_hot=True),  # its map is part of the program
        SparseFeature(name="hour", rows=24),
    ),
)
NAMES = [feature.name for feature in SPEC.sparse]


class Days:
    """A model that meets other users and shops each day, its packages, and the deltas between them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        config = TablesConfig(update_every=1, max_age=6)
        torch.manual_seed(torch.seed() % 1000)
        configs = build_tables(SPEC.tables(DIM), config)
        assert isinstance(configs, ManagedEmbeddingBagCollection)
        self.tables = ManagedEmbeddingBagCollection(configs.physical_configs())
        self.model = DLRM(self.tables, 1, [16, DIM], [16, 1])
        self.encode: Any = None
        for day in range(4):
            self._train(day)
            self._package(day)
            if day:
                make_delta(folder / f"base-{day - 1}", folder / f"base-{day}", folder / f"delta-{day}")

    def columns(self, day: int, rows: int, seed: int) -> dict[str, list[Any]]:
        """Raw values; users and shops of a day overlap with those of the next."""
        random = np.random.default_rng(seed)
        users = 200 * day + random.integers(8_000 if day == 0 else 600, size=rows)
        shops = [100 * day + random.integers(400, size=size) for size in random.integers(4, size=rows)]
        return {
            "a": random.normal(size=rows).tolist(),
            "user": [f"user {number}" for number in users],
            "shop": [[f"shop {number}" for number in own] for own in shops],
            "hour": random.integers(24, size=rows).tolist(),
        }

    def _train(self, day: int) -> None:
        self.model.train()
        if self.encode is None:
            self._package(-1)
            self.encode = Predictor.load(self.folder / "base--1").encode
        for step in range(4):
            dense, bags = self.batch(self.columns(day, 3_000, 10 * day + step))
            self.model(dense, bags)
        for parameter in self.model.over_arch.parameters():
            parameter.data += 0.1 * torch.randn(parameter.shape)

    def batch(self, columns: dict[str, list[Any]]) -> tuple[torch.Tensor, KeyedJaggedTensor]:
        inputs = self.encode(columns)
        ids, lengths = torch.from_numpy(np.concatenate(inputs.ids)), torch.from_numpy(inputs.lengths.reshape(-1))
        return torch.from_numpy(inputs.dense), KeyedJaggedTensor(NAMES, ids, lengths=lengths)

    def _package(self, day: int) -> None:
        model = deepcopy(self.model).eval()
        tables = model.sparse_arch.embedding_bag_collection
        served = serve_tables(model, tables, dict.fromkeys((f"t_{name}" for name in NAMES), "fp32"), NAMES)
        write_package(
            self.folder / f"base-{day}",
            script(Scorer(served, SPEC)),
            SPEC,
            vocabularies={},
            model_facts={},
            metrics={},
            release=Release(version=max(day, 0), window=f"{day}", trained_until=""),
        )


@pytest.fixture(scope="module")
def days(tmp_path_factory: pytest.TempPathFactory) -> Days:
    return Days(tmp_path_factory.mktemp("days"))


def test_a_package_answers_raw_values_as_the_trained_model(days: Days) -> None:
    predictor = Predictor.load(days.folder / "base-3")
    columns = days.columns(3, 500, seed=99)
    days.model.eval()
    expected = torch.sigmoid(days.model(*days.batch(columns))).detach().numpy()
    np.testing.assert_allclose(predictor(columns).predictions, expected, rtol=1e-5)


def test_a_chain_of_deltas_is_the_package_bit_for_bit(days: Days, tmp_path: Path) -> None:
    apply_deltas(days.folder / "base-0", [days.folder / f"delta-{day}" for day in (1, 2, 3)], tmp_path / "made")
    files = {path.relative_to(days.folder / "base-3") for path in (days.folder / "base-3").rglob("*") if path.is_file()}
    assert len(files) > 5
    for file in files:
        if file.name != "package.json":  # which says how it was made
            assert (tmp_path / "made" / file).read_bytes() == (days.folder / "base-3" / file).read_bytes(), file


def test_a_delta_of_a_map_has_the_ids_that_changed_and_not_their_order(days: Days) -> None:
    predictor = Predictor.load(days.folder / "base-1")
    (name,) = [name for name, table in predictor.manifest["tables"].items() if table["order"]]
    changed = {path.name: len(np.load(path)) for path in (days.folder / "delta-1" / "tables").glob("*numbers*")}
    (ids,) = [count for file, count in changed.items() if "ids" in file]
    assert 0 < ids < len(predictor.stored.rows[name]) / 4
    assert len(changed) <= 3


def test_a_server_follows_and_goes_back(days: Days) -> None:
    predictor, columns = Predictor.load(days.folder / "base-0"), days.columns(2, 400, seed=5)
    answers = [Predictor.load(days.folder / f"base-{day}")(columns).predictions for day in range(4)]
    assert not np.array_equal(answers[1], answers[2])
    versions = [predictor]
    updates = []
    for day in (1, 2, 3):
        update = prepare_update(versions[-1], days.folder / f"delta-{day}")
        assert np.array_equal(versions[-1](columns).predictions, answers[day - 1])
        update.write()
        updates.append(update)
        versions.append(update.predictor)
        assert np.array_equal(versions[-1](columns).predictions, answers[day])
    for day in (2, 1, 0):
        updates[day].undo()
        assert np.array_equal(versions[day](columns).predictions, answers[day])
