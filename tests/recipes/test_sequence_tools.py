"""recipes/evaluate.py and what follows it, on a run that reads histories."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
import torch

from dlrm_torchrec.cli.main import main
from dlrm_torchrec.datasets.prepared.manifest import Manifest
from dlrm_torchrec.datasets.sequences.config import SamplesConfig
from dlrm_torchrec.datasets.sequences.open import open_sequences
from dlrm_torchrec.datasets.stream import Ranks
from dlrm_torchrec.datasets.synthetic.specs import interests_spec
from dlrm_torchrec.inference.predictor import Predictor
from dlrm_torchrec.preparation.histories import LogColumns, prepare_histories
from dlrm_torchrec.preparation.readers.tables import Form
from dlrm_torchrec.preparation.time_windows import Shares
from dlrm_torchrec.schema import History, SparseFeature
from dlrm_torchrec.sequence_schema import Cross
from dlrm_torchrec.train.metrics.auc import auc
from dlrm_torchrec.train.metrics.scores import Scores
from tests.distributed import run_ranks
from tests.recipe import load_recipe, run_recipe

SMALL = [
    "demo", "--batch-size=64", "--eval-every=0", "--epochs=2", "--sparse.lr=0.01", "--dense.lr=0.004",
    "--dense.weight-decay=0", "--schedule.warmup-steps=50",
]  # fmt: skip
USERS, ITEMS = 240, 60


def evaluate(run: Path, options: dict[str, Any]) -> dict[str, float]:
    recipe = load_recipe("evaluate")
    return recipe.main(recipe.Config(recipe="train_hstu", run=str(run), **options))


def quantize(run: Path, **options: Any) -> dict[str, float]:
    module = load_recipe("quantize_dlrm")
    return module.main(module.Config(recipe="train_hstu", run=str(run), calibration_batches=2, **options))


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log in which users like every third item, prepared as histories."""
    folder, random = tmp_path_factory.mktemp("log"), np.random.default_rng(1)
    users = np.repeat(np.arange(USERS), random.integers(5, 30, USERS))
    items, times = random.integers(0, ITEMS, len(users)), 1_700_000_000 + random.integers(0, 10**6, len(users))
    likes = random.random(len(users)) < np.where(items % 3 == 0, 0.8, 0.2)
    rows = {"user": [f"u{user}" for user in users], "item": [f"i{item}" for item in items]}
    rows |= {"country": [f"c{user % 5}" for user in users], "shelf": [f"s{item % 7}" for item in items]}
    pacsv.write_csv(pa.table({**rows, "action": np.where(likes, "like", "skip"), "time": times}), folder / "log.csv")
    prepared = LogColumns(user="user", item="item", time="time", action="action", events=("shelf",), users=("country",))
    prepare_histories(
        [str(folder / "log.csv")],
        prepared,
        str(folder / "log"),
        form=Form(),
        name="log",
        positive=("like",),
        shares=Shares(),
    )
    return folder / "log"


@pytest.fixture(scope="module")
def trained(log: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    """A run of two ranks and its final metrics."""
    folder = tmp_path_factory.mktemp("run")
    return folder / "demo", run_recipe("train_hstu", [*SMALL, f"--data={log}", f"--run-dir={folder}"], 2)


@pytest.mark.parametrize("world_size", [1, 2])
def test_metrics_are_those_of_the_run(trained: tuple[Path, dict[str, float]], world_size: int) -> None:
    run, metrics = trained
    found = run_ranks(world_size, evaluate, run, {}, join=False)[0]
    for name in ("val/auc", "val/ne", "val/logloss", "val/samples", "val/gauc", "val/gauc_share"):
        assert found[name] == pytest.approx(metrics[name], rel=1e-5)


def test_what_features_are_worth(trained: tuple[Path, dict[str, float]]) -> None:
    run, _ = trained
    found = run_ranks(1, evaluate, run, {"ablation": True, "batch_size": 512, "gauc": "country"}, join=False)[0]
    assert found["val/gauc"] == pytest.approx(found["val/auc"], abs=0.05)  # 5 countries, each with many rows
    assert found["val/gauc"] != found["val/auc"]
    lost = json.loads((run / "evaluation.json").read_text())["ablation"]
    assert set(lost) == {"user", "country", "item", "shelf"}


@pytest.mark.parametrize("feature", ["segment", "item", "cross", ""])
def test_rows_are_grouped_by_the_candidate_or_its_user(feature: str) -> None:
    plain = interests_spec()
    history = History(
        events=("item", "category"), actions=("skip", "like"), positive=("like",),
        crosses=(Cross(name="cross", of=("item", "segment")),),
    )  # fmt: skip
    crossed = SparseFeature(name="cross", rows=50, encoding="hash", multi_hot=True)
    spec = replace(plain, sparse=(*plain.sparse, crossed), history=history)
    config = SamplesConfig(history=6, candidates=3)
    stream = open_sequences("synthetic", spec, Ranks(40, 1, 2), config, users=80, epochs=1, seed=1)["val"]
    for batch in stream.batches():
        jagged, wanted = batch.sparse_features.to_dict(), list[int]()
        for sample, count in enumerate(batch.num_candidates.tolist()):
            if not feature:
                wanted += [int(batch.users[sample])] * count
                continue
            own = jagged[feature].values()[jagged[feature].offsets()[sample] : jagged[feature].offsets()[sample + 1]]
            wanted += own[-count:].tolist() if feature != "segment" and count else own.tolist() * count
        assert batch.ids_of_rows(feature).tolist() == wanted
        assert len(wanted) == batch.num_rows


def test_the_package_scores_as_the_run_does(log: Path, trained: tuple[Path, dict[str, float]], tmp_path: Path) -> None:
    run, metrics = trained
    found = quantize(run)
    for name in ("val/auc", "val/logloss", "val/ne", "val/samples"):
        assert found[f"before/{name}"] == pytest.approx(metrics[name], rel=1e-5)
    assert found["val/auc"] == pytest.approx(metrics["val/auc"], abs=1e-3)
    assert 0 < found["largest_change"] < 0.05
    assert found["bytes/tables"] / found["before/bytes/tables"] == pytest.approx((32 + 4) / 128)
    assert found["bytes/mlps"] < found["before/bytes/mlps"]
    package = json.loads((run / "package/package.json").read_text())
    assert set(package["model"]["tables"].values()) == {"int8"}
    assert package["samples"]["history"] == 32

    target = tmp_path / "scores.parquet"
    assert main(["predict", str(run / "package"), str(log), "--output", str(target)]) == 0
    scores = pq.read_table(target)
    assert scores.column_names == ["user", "time", "probability", "label"]
    logits = torch.logit(torch.from_numpy(scores["probability"].to_numpy().copy()).double())
    labels = torch.from_numpy(scores["label"].to_numpy().copy())
    assert auc(Scores(logits, labels)) == pytest.approx(found["val/auc"], abs=1e-6)
    assert main(["predict", str(run / "package"), str(log), "--output", str(target), "--force", "--split", "x"]) == 2


def test_a_float_package_gives_the_trained_models_probabilities(trained: tuple[Path, dict[str, float]]) -> None:
    run, _ = trained
    found = quantize(run, tables="fp32", mlps="fp32", output=str(run / "float"))
    assert found["largest_change"] <= 1e-6
    assert found["bytes/tables"] == found["before/bytes/tables"]


def test_raw_events_get_the_scores_of_their_ids(
    log: Path, trained: tuple[Path, dict[str, float]], tmp_path: Path
) -> None:
    """The first candidate of a user in ``val``: asked by its raw history, and read from the prepared folder."""
    run, target = trained[0], tmp_path / "scores.parquet"
    quantize(run, tables="fp16", mlps="fp32", output=str(run / "half"))
    assert main(["predict", str(run / "half"), str(log), "--output", str(target)]) == 0
    scores, raw = pq.read_table(target).to_pylist(), pacsv.read_csv(log.parent / "log.csv").to_pylist()
    predictor, compared = Predictor.load(run / "half"), 0
    vocabulary = pq.read_table(log / "vocab/user.parquet")["value"].to_pylist()
    users = pq.read_table(Manifest.load(str(log)).splits["users"].files[0].location(str(log)))["user"].to_pylist()
    for number in sorted({row["user"] for row in scores}):
        first = next(row for row in scores if row["user"] == number)
        name = vocabulary[users[number] - 2]
        events = sorted((row for row in raw if row["user"] == name), key=lambda row: row["time"])
        times = [row["time"] for row in events]
        if len(set(times)) < len(times):
            continue
        place = times.index(first["time"])
        asked = {"user": [name], "country": [events[0]["country"]], "candidates.time": [first["time"]]}
        asked |= {key: [[row[key] for row in events[:place]]] for key in ("item", "shelf", "action", "time")}
        asked |= {f"candidates.{key}": [[events[place][key]]] for key in ("item", "shelf")}
        assert predictor(asked).probabilities[0] == pytest.approx(first["probability"], abs=1e-6)
        compared += 1
    assert compared > 20


@pytest.mark.parametrize("kind", ["quotient_remainder", "hash"])
def test_compositional_tables(kind: str, log: Path, tmp_path: Path) -> None:
    tables = [f"--tables.kind={kind}", "--tables.threshold=50", "--tables.collisions=3", "--speed=exact"]
    run_recipe("train_hstu", [*SMALL, f"--data={log}", *tables, f"--run-dir={tmp_path}"], 1)
    exact = quantize(tmp_path / "demo", tables="fp32", mlps="fp32")
    assert exact["largest_change"] <= 1e-6
    found = quantize(tmp_path / "demo", table_types={"t_item": "int4"})
    assert found["val/auc"] == pytest.approx(found["before/val/auc"], abs=3e-3)
    assert found["val/auc"] > 0.6


def test_the_floor_is_served_too(log: Path, tmp_path: Path) -> None:
    run_recipe("train_hstu", [*SMALL, f"--data={log}", "--history=pooled", f"--run-dir={tmp_path}"], 1)
    assert quantize(tmp_path / "demo", tables="fp32", mlps="fp32")["largest_change"] <= 1e-6
