"""recipes/train_hstu_next_item.py on a log of texts, from training to the best items of each user."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest

from dlrm_torchrec.cli.main import BAD_ARGUMENTS, main
from dlrm_torchrec.datasets.prepared.manifest import Manifest
from dlrm_torchrec.datasets.sequences.browsing import Browsing
from dlrm_torchrec.datasets.synthetic.specs import browsing_spec
from dlrm_torchrec.inference.predictor import Predictor
from dlrm_torchrec.preparation.histories import LogColumns, prepare_histories
from dlrm_torchrec.preparation.readers.tables import Form
from dlrm_torchrec.preparation.time_windows import Shares
from tests.recipe import load_recipe, run_recipe

USERS = 300


def quantize(run: Path, **options: Any) -> dict[str, float]:
    module = load_recipe("quantize_dlrm")
    return module.main(module.Config(recipe="train_hstu_next_item", run=str(run), calibration_batches=2, **options))


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What synthetic users browse, prepared from texts; items of few events are unseen."""
    folder, made = tmp_path_factory.mktemp("log"), Browsing(browsing_spec(), users=USERS, seed=0).log()
    rows = {"user": [f"u{user}" for user in made.user_of], "item": [f"i{item}" for item in made.events["item"]]}
    pacsv.write_csv(pa.table(rows | {"time": made.times}), folder / "log.csv")
    prepare_histories(
        [str(folder / "log.csv")], LogColumns(user="user", item="item", time="time"),
        str(folder / "log"), form=Form(), name="shop", positive=(), shares=Shares(val=0, test=0),
        min_count=10,
    )  # fmt: skip
    return folder / "log"


@pytest.fixture(scope="module")
def trained(log: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    """A run and its final metrics."""
    folder = tmp_path_factory.mktemp("run")
    options = ["demo", f"--data={log}", f"--run-dir={folder}", "--epochs=6", "--batch-size=32", "--eval-every=0"]
    return folder / "demo", run_recipe("train_hstu_next_item", [*options, "--samples.history=20"], 1)


def test_the_package_ranks_as_the_run_does(log: Path, trained: tuple[Path, dict[str, float]], tmp_path: Path) -> None:
    run, metrics = trained
    found = quantize(run)
    for name in ("hr@10", "ndcg@10", "auc", "positives", "samples"):
        assert found[f"before/val/{name}"] == pytest.approx(metrics[f"val/{name}"], rel=1e-5)
    assert 0 < abs(found["val/ndcg@10"] - metrics["val/ndcg@10"]) < 0.01
    assert 0 < found["largest_change"] < 0.5
    assert found["bytes/tables"] / found["before/bytes/tables"] == pytest.approx((32 + 4) / 128)
    manifest = json.loads((run / "package/package.json").read_text())
    assert (manifest["ranks"], manifest["samples"]["history"]) == ("item", 20)

    for split in ("val", "test"):
        target = tmp_path / f"{split}.parquet"
        assert main(["predict", str(run / "package"), str(log), "--split", split, "--output", str(target)]) == 0
        rows = pq.read_table(target)
        assert rows.column_names == ["user", "time", "items", "scores", "came"]
        assert len(rows) == USERS
        hits = [row["came"] in row["items"] for row in rows.to_pylist()]
        if split == "val":  # but for two items at the end of a list whose scores are equal within rounding
            assert np.mean(hits) == pytest.approx(found["val/hr@10"], abs=1.5 / USERS)
        assert np.mean(hits) == pytest.approx(metrics[f"{split}/hr@10"], abs=0.03)
    command = ["predict", str(run / "package"), str(log), "--output", str(tmp_path / "val.csv")]
    assert main(command) == BAD_ARGUMENTS


def test_raw_histories_get_the_items_of_their_ids(log: Path, trained: tuple[Path, dict[str, float]]) -> None:
    """Of users in ``test``: asked by raw history, and read from the prepared folder."""
    run, target = trained[0], log.parent / "items.parquet"
    quantize(run, tables="fp16", output=str(run / "half"))
    command = ["predict", str(run / "half"), str(log), "--split", "test", "--output", str(target)]
    assert main(command) == 0
    raw, words = pacsv.read_csv(log.parent / "log.csv").to_pylist(), pq.read_table(log / "vocab/user.parquet")
    users = pq.read_table(Manifest.load(str(log)).splits["users"].files[0].location(str(log)))["user"].to_pylist()
    predictor, told = Predictor.load(run / "half"), pq.read_table(target).to_pylist()
    known, unseen = {*pq.read_table(log / "vocab/item.parquet")["value"].to_pylist()}, 0
    for row in told[:40]:
        name = words["value"][users[row["user"]] - 2].as_py()
        events = [each for each in raw if each["user"] == name]
        last = max((each for each in events if each["item"] in known), key=lambda each: each["time"])
        past = [each for each in events if each["time"] < last["time"]]  # in order, as the log is written
        assert (last["time"], last["item"]) == (row["time"], row["came"])
        unseen += sum(each["item"] not in known for each in past[-20:])
        asked = {"item": [[each["item"] for each in past]], "time": [[each["time"] for each in past]]}
        found = predictor.named(predictor(asked | {"candidates.time": [last["time"]]}))
        assert found["scores"][0] == pytest.approx(row["scores"], abs=1e-5)
        assert found["items"][0] == row["items"]
    assert unseen > 20


@pytest.mark.parametrize("options", [[], ["--tables.kind=quotient_remainder", "--tables.threshold=100"]])
def test_a_float_package_gives_the_scores_of_the_run(log: Path, tmp_path: Path, options: list[str]) -> None:
    few = ["demo", f"--data={log}", f"--run-dir={tmp_path}", "--epochs=1", "--batch-size=100", "--speed=exact"]
    run_recipe("train_hstu_next_item", [*few, *options], 1)
    assert quantize(tmp_path / "demo", tables="fp32")["largest_change"] <= 1e-5


def test_too_great_a_fall_is_refused_and_a_budget_is_kept(
    trained: tuple[Path, dict[str, float]], tmp_path: Path
) -> None:
    run, _ = trained
    message = r"NDCG@10 must not fall by more than -1 plus two standard errors of .*: got .*, and nothing was written; "
    with pytest.raises(ValueError, match=message):
        quantize(run, tables="int2", max_auc_loss=-1, output=str(tmp_path / "p"))
    assert not (tmp_path / "p").exists()
    found = quantize(run, budget_mib=0.012, max_auc_loss=1, output=str(tmp_path / "p"))
    assert found["bytes/tables"] <= 0.012 * 2**20
    assert set(json.loads((tmp_path / "p/package.json").read_text())["model"]["tables"].values()) == {"int4"}
