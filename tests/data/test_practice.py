"""data/practice/generate.py: its columns, and the best AUC that it states."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from tests.data import load_script

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script(ROOT / "data/practice/generate.py")


def share_of_ordered_pairs(scores: list[float], labels: list[int]) -> float:
    """The AUC by its definition, pair by pair."""
    positive = [score for score, label in zip(scores, labels, strict=True) if label]
    negative = [score for score, label in zip(scores, labels, strict=True) if not label]
    won = sum((one > other) + (one == other) / 2 for one in positive for other in negative)
    return won / (len(positive) * len(negative))


@pytest.mark.parametrize("seed", range(3))
def test_the_best_auc_is_the_one_of_the_probabilities(script: ModuleType, tmp_path: Path, seed: int) -> None:
    cfg = script.Config(rows=400, seed=seed, output=str(tmp_path / "clicks.csv"))
    known = script.main(cfg)
    _, probabilities, labels = script.generate(cfg)
    assert known["best_auc"] == pytest.approx(share_of_ordered_pairs(probabilities.tolist(), labels.tolist()))
    assert json.loads((tmp_path / "clicks.best.json").read_text()) == known
    assert known["positives"] == labels.sum() == pa.csv.read_csv(tmp_path / "clicks.csv")["clicked"].to_numpy().sum()


def test_equal_scores_count_half(script: ModuleType) -> None:
    random = np.random.default_rng(7)
    scores, labels = random.integers(0, 9, 200) / 8, random.integers(0, 2, 200)
    assert script.auc(scores, labels) == pytest.approx(share_of_ordered_pairs(scores.tolist(), labels.tolist()))
    assert np.isnan(script.auc(scores, np.zeros(200, dtype=np.int64)))


@pytest.mark.parametrize("share", [0.02, 0.3])
def test_labels_are_drawn_from_the_probabilities(script: ModuleType, share: float) -> None:
    _, probabilities, labels = script.generate(script.Config(rows=40_000, positive_share=share, output="x.csv"))
    assert probabilities.mean() == pytest.approx(share, abs=1e-6)
    for low, high in ((0, share), (share, 1)):  # calibrated in both halves, within four standard errors
        rows = (low <= probabilities) & (probabilities < high)
        expected = probabilities[rows]
        assert abs(labels[rows].sum() - expected.sum()) < 4 * np.sqrt((expected * (1 - expected)).sum())


def test_columns_have_their_traps_in_csv_and_parquet_alike(script: ModuleType, tmp_path: Path) -> None:
    for name in ("clicks.csv", "clicks.parquet"):
        script.main(script.Config(rows=2_000, output=str(tmp_path / name)))
    text, typed = pa.csv.read_csv(tmp_path / "clicks.csv"), pq.read_table(tmp_path / "clicks.parquet")
    assert "NA" in (tmp_path / "clicks.csv").read_text()
    assert text["price"].null_count == typed["price"].null_count > 100
    assert text.to_pydict() == typed.to_pydict()
    columns = typed.to_pydict()
    assert len(set(columns["row_id"])) == 2_000
    assert columns["time"] == sorted(columns["time"])
    assert set(columns["weekend"]) == {"yes", "no"}
    assert set(columns["version"]) == {3}
    assert len(set(columns["site"])) == 12
    assert len(set(columns["device"])) > 300
    assert max(columns["visits"]) > 100 * np.median(columns["visits"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rows": 99}, r"^rows must be at least 100: got 99; raise them$"),
        ({"positive_share": 1.0}, r"^positive_share must be between 0 and 1: got 1.0; try 0.2$"),
        ({"output": "x.txt"}, r"^output must end in .csv or .parquet: got 'x.txt'; rename it$"),
    ],
)
def test_a_mistake_is_one_sentence(script: ModuleType, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        script.Config(**{"output": "x.csv", **options})


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_files_of_days_hold_the_rows_of_one_file(script: ModuleType, tmp_path: Path, ending: str) -> None:
    for by_day in (False, True):
        script.main(script.Config(rows=900, output=str(tmp_path / f"clicks.{ending}"), by_day=by_day))
    read = pa.csv.read_csv if ending == "csv" else pq.read_table
    days = [read(tmp_path / f"clicks-{day:02d}.{ending}") for day in range(1, script.DAYS + 1)]
    assert pa.concat_tables(days).to_pylist() == read(tmp_path / f"clicks.{ending}").to_pylist()
    seconds = [day["time"].to_numpy() for day in days]
    assert all(one.max() < other.min() for one, other in pairwise(seconds))
    assert max(np.ptp(each) for each in seconds) < 86_400
