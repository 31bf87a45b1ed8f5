"""Runs that fit their data and stay tied to them, as a person types them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dlrm_torchrec.datasets.prepared.files import digest
from dlrm_torchrec.datasets.prepared.manifest import DataFile, Manifest, Split
from tests.prepared import write_prepared
from tests.recipe import ROOT
from tests.scripts import run_python

SPEC: dict[str, object] = {
    "name": "s", "label": "label", "dense": [{"name": "price"}],
    "sparse": [{"name": "city", "rows": 0, "encoding": "vocab"}],
}  # fmt: skip


def write_csv(path: Path, frequencies: range, seed: int, rows: int = 2_000) -> None:
    """Rows whose label follows the number of the city; frequent cities get the small ids of a vocabulary."""
    random = np.random.default_rng(seed)
    weights = np.array(frequencies, dtype=float)
    city = random.choice(len(weights), rows, p=weights / weights.sum())
    label = random.random(rows) < 1 / (1 + np.exp(-1.2 * (city - 4)))
    ts = 1_700_000_000 + random.integers(0, 10**6, rows)
    lines = [
        f"{int(y)},{x:.3f},{t},c{c}\n" for y, x, t, c in zip(label, random.normal(size=rows), ts, city, strict=True)
    ]
    path.write_text("".join(["label,price,ts,city\n", *lines]))


def prepare(folder: Path, csv: str, spec: dict[str, object]) -> None:
    (folder / "spec.json").write_text(json.dumps(spec))
    words = ["table", "--spec", "spec.json", "--input", csv, "--val_share", "0.2", "--output", "prep", "--overwrite"]
    done = run_python([str(ROOT / "data/criteo/prepare.py"), *words], folder)
    assert done.returncode == 0, done.stderr


def train(folder: Path, *options: str, recipe: str = "train_dlrm") -> subprocess.CompletedProcess[str]:
    return run_python(
        [str(ROOT / f"recipes/{recipe}.py"), "demo", "--data", "prep", "--run-dir", "runs", *options], folder
    )


def final(done: subprocess.CompletedProcess[str]) -> dict[str, float]:
    assert done.returncode == 0, done.stderr
    metrics: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return {name: value for name, value in metrics.items() if name != "samples_per_s"}


def test_a_run_refuses_data_whose_ids_mean_something_else(tmp_path: Path) -> None:
    """Case 52: the folder is prepared again from another day, with a vocabulary of the same size."""
    write_csv(tmp_path / "monday.csv", range(4, 13), seed=1)
    write_csv(tmp_path / "tuesday.csv", range(12, 3, -1), seed=2)
    prepare(tmp_path, "monday.csv", SPEC)
    first = train(tmp_path)
    metrics = final(first)
    assert metrics["val/auc"] > 0.8  # 1,600 rows, and no option that fits them
    assert "batch_size 32: " in first.stderr
    assert "epochs 5: " in first.stderr
    assert re.search(
        r"train: 1,\d{3} rows, 1?,?\d{3} positive .*; val: \d{3} rows, .*steps\n(.|\n)*train/loss", first.stderr
    )
    shutil.move(tmp_path / "prep", tmp_path / "moved")
    again = train(tmp_path, "--data", "moved")
    assert final(again) == metrics  # the place of the data does not matter
    assert "holds a finished run" in again.stderr
    prepare(tmp_path, "tuesday.csv", SPEC)
    other = train(tmp_path)
    assert other.returncode != 0
    assert "spec.sparse['city'].vocabulary must be what the checkpoint" in other.stderr
    assert "prepare the data with the vocabularies and scales of the run's own data, or start anew" in other.stderr


def test_epoch_seconds_as_a_number_are_warned_of_by_name(tmp_path: Path) -> None:
    """Case 42: without a scale, the column drowns all others."""
    write_csv(tmp_path / "a.csv", range(4, 13), seed=1)
    prepare(tmp_path, "a.csv", {**SPEC, "dense": [{"name": "price"}, {"name": "ts"}]})
    told = train(tmp_path, "--log.every", "10").stderr
    assert told.count("warning: dense column 'ts' has values up to 1.7e+09") == 1
    assert told.index("warning: dense column 'ts'") < told.index("step 10 ")
    assert "warning: the training loss" in told
    assert "'price'" not in told
    scaled = {"name": "ts", "standardise": True}
    prepare(tmp_path, "a.csv", {**SPEC, "dense": [{"name": "price"}, scaled]})
    healthy = train(tmp_path, "--run-dir", "scaled")
    assert final(healthy)["val/auc"] > 0.8
    assert "warning" not in healthy.stderr


def checksummed(folder: Path) -> None:
    """Write the checksums of the files into dataset.json, as preparation does."""
    manifest = Manifest.load(str(folder))
    splits = {}
    for name, split in manifest.splits.items():
        files = [replace(file, sha256=digest(file.location(str(folder)), lambda _: None)[1]) for file in split.files]
        splits[name] = Split(files=tuple(files))
    replace(manifest, splits=splits).save(str(folder))


def test_a_finished_run_refuses_other_rows(tmp_path: Path) -> None:
    groups = {"train": [[600]], "val": [[300]]}
    checksummed(write_prepared(tmp_path / "prep", groups, seed=1))
    metrics = final(train(tmp_path, "--epochs", "1"))
    shutil.rmtree(tmp_path / "prep")
    checksummed(write_prepared(tmp_path / "prep", groups, seed=2))  # as many rows, the same spec
    refused = train(tmp_path, "--epochs", "1")
    assert refused.returncode != 0
    assert "data_digest must be what the checkpoint" in refused.stderr
    assert "these are other rows" in refused.stderr
    shutil.rmtree(tmp_path / "prep")
    checksummed(write_prepared(tmp_path / "prep", groups, seed=1))
    assert final(train(tmp_path, "--epochs", "1")) == metrics


def test_a_baseline_is_shown_beside_the_run_and_must_know_its_data(tmp_path: Path) -> None:
    groups = {"train": [[900]], "val": [[300]]}
    checksummed(write_prepared(tmp_path / "prep", groups, seed=1))
    floor = final(train(tmp_path, "--run-dir", "logistic", recipe="train_logistic"))
    assert floor["val/auc"] > 0.75
    compared = train(tmp_path, "--baseline", "logistic/demo", "--eval-every", "0")
    beside = final(compared)
    assert f"that of the baseline is {floor['val/auc']:.4f}, a difference of" in compared.stderr
    assert beside["baseline/auc"] == floor["val/auc"]
    assert beside["val/auc"] > 0.75
    shutil.rmtree(tmp_path / "prep")
    checksummed(write_prepared(tmp_path / "prep", groups, seed=2))
    for run, message in (
        ("logistic/demo", "baseline must be a finished run on the data of this run, of digest"),
        ("nothing", "nothing/checkpoints must hold a whole checkpoint"),
    ):
        refused = train(tmp_path, "--baseline", run, "--run-dir", "other")
        assert refused.returncode != 0
        assert message in refused.stderr
        assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("splits", "positives", "message"),
    [
        ({"train": 500}, {}, "prepared data must have rows in a 'val' split to train with: got {'train': 500} in prep"),
        ({"train": 500, "val": 0}, {}, "prepared data must have rows in a 'val' split to train with"),
        (
            {"train": 500, "val": 100},
            {"train": 100, "val": 0},
            "labels of split 'val' must have both classes: got 0 positives in 100 rows of prep",
        ),
        (
            {"train": 500, "val": 100},
            {"train": 500, "val": 10},
            "labels of split 'train' must have both classes: got 500 positives in 500 rows of prep",
        ),
    ],
)
def test_data_that_cannot_be_judged_are_refused_before_the_model(
    tmp_path: Path, splits: dict[str, int], positives: dict[str, int], message: str
) -> None:
    folder = write_prepared(tmp_path / "prep", {"train": [[500]], "val": [[100]]})
    files = {
        name: Split(files=(DataFile(path=f"{name}/part-0.parquet", rows=rows),) if rows else ())
        for name, rows in splits.items()
    }
    report = {"splits": {name: {"rows": splits[name], "positives": count} for name, count in positives.items()}}
    replace(Manifest.load(str(folder)), splits=files, report=report).save(str(folder))
    refused = train(tmp_path)
    assert refused.returncode != 0
    assert message in refused.stderr
    assert not (tmp_path / "runs").exists()
