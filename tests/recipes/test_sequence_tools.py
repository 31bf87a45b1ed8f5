"""recipes/evaluate.py and what follows it, on a run that reads histories."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dlrm_torchrec.datasets.sequences.config import SamplesConfig
from dlrm_torchrec.datasets.sequences.open import open_sequences
from dlrm_torchrec.datasets.stream import Ranks
from dlrm_torchrec.datasets.synthetic.specs import interests_spec
from dlrm_torchrec.schema import History, SparseFeature
from dlrm_torchrec.sequence_schema import Cross
from tests.distributed import run_ranks
from tests.recipe import load_recipe, run_recipe

SMALL = ["demo", "--rows=1200", "--batch-size=64", "--eval-every=0"]


def evaluate(run: Path, options: dict[str, Any]) -> dict[str, float]:
    recipe = load_recipe("evaluate")
    return recipe.main(recipe.Config(recipe="train_hstu", run=str(run), **options))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    """A run of two ranks and its final metrics."""
    folder = tmp_path_factory.mktemp("run")
    return folder / "demo", run_recipe("train_hstu", [*SMALL, f"--run-dir={folder}"], 2)


@pytest.mark.parametrize("world_size", [1, 2])
def test_metrics_are_those_of_the_run(trained: tuple[Path, dict[str, float]], world_size: int) -> None:
    run, metrics = trained
    found = run_ranks(world_size, evaluate, run, {}, join=False)[0]
    for name in ("val/auc", "val/ne", "val/logloss", "val/samples", "val/gauc", "val/gauc_share"):
        assert found[name] == pytest.approx(metrics[name], rel=1e-5)


def test_what_features_are_worth(trained: tuple[Path, dict[str, float]]) -> None:
    run, _ = trained
    found = run_ranks(1, evaluate, run, {"ablation": True, "batch_size": 512, "gauc": "segment"}, join=False)[0]
    assert found["val/gauc"] == pytest.approx(found["val/auc"], abs=0.05)  # 10 segments, each with many rows
    assert found["val/gauc"] != found["val/auc"]
    lost = json.loads((run / "evaluation.json").read_text())["ablation"]
    assert set(lost) == {"segment", "item", "category"}


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
