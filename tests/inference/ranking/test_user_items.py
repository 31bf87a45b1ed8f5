"""Packages of models of users and items: the best of all items for each user."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

from dlrm_torchrec.cli.main import main
from dlrm_torchrec.embeddings.config import TablesConfig
from dlrm_torchrec.embeddings.tables import build_tables
from dlrm_torchrec.inference.forms.rankings import user_item_spec
from dlrm_torchrec.inference.loading import load_package
from dlrm_torchrec.inference.package import write_package
from dlrm_torchrec.inference.ranking import top_items
from dlrm_torchrec.inference.ranking.user_item import UserItemScorer
from dlrm_torchrec.inference.scoring import script
from dlrm_torchrec.inference.tables.serve import serve_tables, table_weights
from dlrm_torchrec.inference.tables.types import rounded
from dlrm_torchrec.models.matrix_factorization import MatrixFactorization
from dlrm_torchrec.models.neumf import NeuMF
from dlrm_torchrec.models.user_item import UserItemModel
from dlrm_torchrec.schema import DatasetSpec, SparseFeature
from tests.inference.sequences.histories import columns
from tests.inference.sequences.test_packages import ELSEWHERE

USERS, MOVIES, COLUMNS = [f"u{n}" for n in range(9)], [f"m{n}" for n in range(50)], ("user", "movie")
SPEC = DatasetSpec(
    name="films",
    label="label",
    dense=(),
    sparse=(
        SparseFeature(name="year", rows=9),  # which the model does not read
        SparseFeature(name="movie", column="title", rows=2 + len(MOVIES), encoding="vocab"),
        SparseFeature(name="user", rows=2 + len(USERS), encoding="vocab"),
    ),
)
SERVED = user_item_spec(SPEC, COLUMNS)


def package(folder: Path, score: nn.Module, tables: TablesConfig, dim: int) -> tuple[Path, UserItemModel]:
    """The package in int8, and the trained model with the rows of its tables rounded likewise."""
    torch.manual_seed(dim)

    def built() -> tuple[UserItemModel, Any]:
        both = build_tables([table for table in SPEC.tables(dim=dim) if table.features[0] in COLUMNS], tables)
        both.to_empty(device="cpu")
        return UserItemModel(both, *COLUMNS, score).eval(), both

    (model, own), (trained, other) = built(), built()
    for name, weight in table_weights(own).items():
        nn.init.normal_(weight.data)
        table_weights(other)[name].data.copy_(rounded(weight.data, "int8"))
    names = [feature.name for feature in SPEC.sparse]
    served = serve_tables(model, own, dict.fromkeys(table_weights(own), "int8"), names)
    for name, values in (("user", USERS), ("movie", MOVIES)):
        pq.write_table(pa.table({"value": values}), folder / f"{name}.parquet")
    words = {name: str(folder / f"{name}.parquet") for name in COLUMNS}
    program = script(UserItemScorer(served, SERVED, names))
    write_package(folder / "package", program, SERVED, vocabularies=words, model_facts={}, metrics={}, ranks="movie")
    return folder / "package", trained


def draw(count: int, seed: int) -> list[dict[str, Any]]:
    number = np.random.default_rng(seed)
    return [
        {
            "user": USERS[number.integers(9)],
            "title": [MOVIES[n] for n in number.integers(0, 50, number.integers(0, 30))],
        }
        for _ in range(count)
    ]


@torch.no_grad()
def scores(model: UserItemModel, row: dict[str, Any]) -> dict[str, float]:
    """The score of each movie that the user does not have, in float64."""
    from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

    count = len(MOVIES)
    users = torch.full((count,), 2 + USERS.index(row["user"]) if row["user"] in USERS else 1)
    values = torch.cat([2 + torch.arange(count), users])
    pairs = KeyedJaggedTensor(keys=["movie", "user"], values=values, lengths=torch.ones(2 * count, dtype=torch.int32))
    pooled = model.tables(pairs)
    logits = model.score.double()(pooled["user"].double(), pooled["movie"].double()).squeeze(1)
    model.score.float()
    return {movie: float(logits[place]) for place, movie in enumerate(MOVIES) if movie not in row["title"]}


@pytest.mark.parametrize(
    ("score", "tables", "dim"),
    [
        (MatrixFactorization(), TablesConfig(), 8),
        (NeuMF(4, (16, 8, 4)), TablesConfig(), 12),
        (MatrixFactorization(), TablesConfig(kind="quotient_remainder", threshold=10, collisions=4), 8),
    ],
    ids=["mf", "neumf", "compositional"],
)
def test_they_tell_the_best_of_all_items(
    score: nn.Module, tables: TablesConfig, dim: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(top_items, "BLOCK_ITEMS", 16)
    path, model = package(tmp_path, score, tables, dim)
    rows = draw(20, 3)
    rows[0] |= {"title": []}
    rows[1] |= {"user": "somebody new", "title": ["m3", "a new one", None]}
    for count, most in ((1, 10), (20, 10), (20, 100)):
        predictor = load_package(path, top=most)
        found = predictor(columns(rows[:count]))
        assert found.unseen == ({"user": 1, "movie": 1} if count > 1 else {})
        for row, items, own in zip(rows, *predictor.named(found).values(), strict=False):
            expected = scores(model, row)
            assert len(set(items)) == len(items) == min(most, len(expected))
            np.testing.assert_allclose(own, sorted(expected.values(), reverse=True)[:most], atol=2e-5)
            np.testing.assert_allclose(own, [expected[item] for item in items], atol=2e-5)


def test_they_need_nothing_of_this_project_and_take_files(tmp_path: Path) -> None:
    path, _ = package(tmp_path, NeuMF(4, (16, 8, 4)), TablesConfig(), 12)
    rows, there = draw(9, 2), tmp_path / "there.npy"
    here = load_package(path)(columns(rows))
    subprocess.run(
        [sys.executable, "-I", "-c", ELSEWHERE, str(path), str(there)],
        input=json.dumps(columns(rows)), text=True, check=True, cwd=tmp_path, timeout=120,
    )  # fmt: skip
    assert np.array_equal(np.load(there), here.probabilities)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    target = tmp_path / "movies.parquet"
    assert main(["predict", str(path), str(tmp_path / "rows.jsonl"), "--output", str(target)]) == 0
    assert pq.read_table(target)["items"].to_pylist() == here.columns()[0].to_pylist()
