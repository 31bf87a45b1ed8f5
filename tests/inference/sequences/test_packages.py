"""Packages of models of histories: the trained model's probabilities, wherever they are loaded."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dlrm_torchrec.cli.main import main
from dlrm_torchrec.datasets.sequences.config import SamplesConfig
from dlrm_torchrec.embeddings.config import TablesConfig
from dlrm_torchrec.embeddings.tables import build_sequence_tables
from dlrm_torchrec.inference.config import TableType
from dlrm_torchrec.inference.loading import load_package
from dlrm_torchrec.inference.package import write_package
from dlrm_torchrec.inference.predictor import Predictor
from dlrm_torchrec.inference.scoring import script
from dlrm_torchrec.inference.sequences.scorer import SequenceScorer
from dlrm_torchrec.inference.tables.ids import serve_id_tables
from dlrm_torchrec.inference.tables.serve import table_weights
from dlrm_torchrec.models.hstu.config import HSTUConfig
from dlrm_torchrec.models.hstu.model import SequenceRanker
from dlrm_torchrec.models.hstu.pooled import PooledRanker
from dlrm_torchrec.models.hstu.ranker import HSTURanker
from dlrm_torchrec.schema import DatasetSpec
from tests.inference.sequences.histories import (
    ACTIONS,
    MARKED,
    PLAIN,
    SPEC,
    batch_of,
    columns,
    draw,
    marked,
    write_vocabularies,
)

DIM, SAMPLES = 8, SamplesConfig(history=7)
SIZES = HSTUConfig(dim=16, hidden=12, most_tokens=32, positions=20, time_buckets=64)
TABLES = {
    "plain": TablesConfig(),
    "quotient_remainder": TablesConfig(kind="quotient_remainder", threshold=10, collisions=4),
    "hash": TablesConfig(kind="hash", threshold=10, collisions=4),
}


def trained(kind: str, tables: str, spec: DatasetSpec = PLAIN) -> tuple[SequenceRanker, nn.Module]:
    """A ranker with random weights, and its tables."""
    torch.manual_seed(len(kind) + len(tables))
    collection = build_sequence_tables(spec.tables(dim=DIM), TABLES[tables])
    collection.to_empty(device="cpu")
    for weight in table_weights(collection).values():
        nn.init.normal_(weight.data)
    build = PooledRanker if kind == "pooled" else HSTURanker
    sizes = HSTUConfig(**vars(SIZES) | {"variant": "mlperf" if kind == "mlperf" else "paper"})
    events = ["item", "artist"]
    context = [feature.name for feature in spec.sparse if feature.name not in events]
    score = build(sizes, events, context, table_dim=DIM, num_actions=len(ACTIONS))
    for parameter in score.head.parameters():
        nn.init.normal_(parameter.data, std=0.5)
    return SequenceRanker(collection, score).eval(), collection


def package(folder: Path, model: nn.Module, tables: Any, types: TableType, spec: DatasetSpec = PLAIN) -> Path:
    kinds = dict.fromkeys(table_weights(tables), types)
    served = serve_id_tables(model, tables, kinds, [feature.name for feature in spec.sparse])
    write_package(
        folder / "package", script(SequenceScorer(served, spec)), spec, vocabularies=write_vocabularies(folder, spec),
        model_facts={}, metrics={}, samples=vars(SAMPLES),
    )  # fmt: skip
    return folder / "package"


ELSEWHERE = """
import json, sys
import numpy as np
for name in ("dlrm_torchrec", "torchrec"):
    sys.modules[name] = None  # importing it fails
sys.path.insert(0, sys.argv[1])
from predictor import Predictor
np.save(sys.argv[2], Predictor.load(sys.argv[1])(json.load(sys.stdin)).probabilities)
"""


CASES = [
    ("paper", "plain", PLAIN),
    ("mlperf", "hash", SPEC),  # with a cross, as in MLPerf
    ("mlperf", "quotient_remainder", MARKED),  # which reads marks, as there, too
    ("paper", "quotient_remainder", PLAIN),
    ("pooled", "quotient_remainder", SPEC),
]


@pytest.mark.parametrize(("kind", "tables", "spec"), CASES)
def test_a_float_package_is_the_trained_model(kind: str, tables: str, spec: DatasetSpec, tmp_path: Path) -> None:
    model, collection = trained(kind, tables, spec)
    rows = marked(draw(40, 5), 6) if spec.marks else draw(40, 5)
    with torch.no_grad():
        expected = torch.sigmoid(model(batch_of(rows, SAMPLES, spec))).squeeze(1).numpy()
    assert expected.std() > 0.05
    predictor = load_package(package(tmp_path, model, collection, "fp32", spec))
    found = predictor(columns(rows))
    np.testing.assert_allclose(found.probabilities, expected, rtol=0, atol=2e-6)
    assert found.unseen == {}
    named = predictor.named(found)["probabilities"]
    assert [len(each) for each in named] == [len(row["candidates.track"]) for row in rows]
    assert np.concatenate(named) == pytest.approx(found.probabilities)


def test_it_needs_nothing_of_this_project_and_its_files_are_checked(tmp_path: Path) -> None:
    path, rows = package(tmp_path, *trained("paper", "quotient_remainder"), "int8"), columns(draw(9, 2))
    here, there = Predictor.load(path)(rows).probabilities, tmp_path / "there.npy"
    subprocess.run(
        [sys.executable, "-I", "-c", ELSEWHERE, str(path), str(there)],
        input=json.dumps(rows), text=True, check=True, cwd=tmp_path, timeout=120,
    )  # fmt: skip
    assert np.array_equal(np.load(there), here)
    damaged = path / "tables/t_item.npy"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\0")
    with pytest.raises(ValueError, match=r"t_item.npy must have sha256 .*: got .*; copy the package again"):
        Predictor.load(path)


def test_a_candidate_gets_the_same_alone_and_beside_others(tmp_path: Path) -> None:
    predictor = Predictor.load(package(tmp_path, *trained("paper", "plain"), "int8"))
    row = draw(2, 3)[1] | {"candidates.track": [f"i{n}" for n in range(30)], "candidates.artist": [*range(6)] * 5}
    together = predictor(columns([row])).probabilities
    assert together.std() > 0.01
    for place in range(30):
        alone = row | {
            f"candidates.{name}": row[f"candidates.{name}"][place : place + 1] for name in ("track", "artist")
        }
        assert predictor(columns([alone])).probabilities == pytest.approx(together[place : place + 1], abs=1e-6)


def test_a_delta_leads_to_the_next_package(tmp_path: Path) -> None:
    model, tables = trained("paper", "quotient_remainder")
    before = package(tmp_path, model, tables, "int8").rename(tmp_path / "before")
    model, tables = trained("paper", "quotient_remainder")
    table_weights(tables)["t_item"].data[1] += 1
    after = package(tmp_path, model, tables, "int8")
    assert main(["delta", "make", str(before), str(after), "--output", str(tmp_path / "delta")]) == 0
    assert main(["delta", "apply", str(before), str(tmp_path / "delta"), "--output", str(tmp_path / "applied")]) == 0
    rows = columns(draw(20, 4))
    old, new, applied = (Predictor.load(path)(rows).probabilities for path in (before, after, tmp_path / "applied"))
    assert np.array_equal(applied, new)
    assert not np.array_equal(old, new)


def test_a_package_says_how_histories_are_cut(tmp_path: Path) -> None:
    program = torch.jit.script(nn.Identity())
    with pytest.raises(
        ValueError, match=r"samples must be given for a model of histories, and for no other: got None f"
    ):
        write_package(tmp_path / "p", program, PLAIN, vocabularies={}, model_facts={}, metrics={})


def test_the_vocabulary_of_a_mark_belongs_to_a_package(tmp_path: Path) -> None:
    words = write_vocabularies(tmp_path, MARKED)
    del words["screen"]
    with pytest.raises(
        ValueError, match=r"vocabularies must be those of 'log': got no \['screen'\] and unknown \[\]; "
    ):
        write_package(
            tmp_path / "p", torch.jit.script(nn.Identity()), MARKED, vocabularies=words, model_facts={}, metrics={},
            samples=vars(SAMPLES),
        )  # fmt: skip


def test_a_model_that_scores_no_candidates_is_refused() -> None:
    model, _ = trained("paper", "plain")
    model.score = nn.Identity()
    with pytest.raises(ValueError, match=r"a model of histories must score candidates to be served: got Identity, whi"):
        SequenceScorer(model, PLAIN)
