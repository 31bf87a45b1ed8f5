"""AUC of the documented commands on made-up files with the traps of real ones, minus that of logistic regression.

    python benchmarks/practice.py
    python benchmarks/practice.py --sizes 10000 --seeds 1 --share 0.02

Each file of data/practice/generate.py is proposed, prepared and trained on as the guide says, without any option. The
floor is the better one of two fits of scikit-learn's LogisticRegression, if it is installed: on one-hot columns of the
raw texts, hashed, and on the prepared ids and numbers. recipes/train_logistic.py is measured beside it, and is the
floor without scikit-learn. All are judged by the same held-out fifth of the rows. Small files take seconds, the largest
one a minute.
"""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tyro

from dlrm_torchrec.datasets.prepared.manifest import Manifest

ROOT = Path(__file__).parent.parent
HASHED = 1 << 18  # one-hot columns of raw texts


def run(folder: Path, *words: str) -> str:
    """What a command of this project printed, run in ``folder``."""
    script = () if words[0] == "-m" else (str(ROOT / words[0]),)
    command = [sys.executable, *script, *(words if words[0] == "-m" else words[1:])]
    environment = {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr}")
    return done.stdout


def split(folder: Path, seed: int) -> None:
    """Cut clicks.csv into train.csv and val.csv, a random fifth, so that raw and prepared rows are the same."""
    header, *lines = (folder / "clicks.csv").read_text().splitlines(keepends=True)
    held_out = np.random.default_rng(seed).random(len(lines)) < 0.2
    for name, chosen in (("train", ~held_out), ("val", held_out)):
        (folder / f"{name}.csv").write_text("".join([header, *np.array(lines)[chosen]]))


def trained(folder: Path, recipe: str, *options: str) -> float:
    """The validation AUC that a recipe reports."""
    run_dir = f"--run-dir=runs/{recipe}"
    printed = run(folder, f"recipes/{recipe}.py", "demo", "--data", "prepared", run_dir, *options)
    return json.loads(printed.splitlines()[-1])["val/auc"]


def raw_columns(path: Path) -> tuple[Any, Any]:
    """One-hot columns of hashed "column=text" of a file, and its labels."""
    from scipy import sparse  # type: ignore[import-untyped]  # it has no stubs, and only the floors need it

    with path.open(newline="") as stream:
        header, *rows = csv.reader(stream)
    texts = [[f"{name}={value}" for name, value in zip(header[:-1], row[:-1], strict=True)] for row in rows]
    ids = np.array([[zlib.crc32(text.encode()) % HASHED for text in row] for row in texts])
    places = np.repeat(np.arange(len(rows)), ids.shape[1])
    columns = sparse.csr_matrix((np.ones(ids.size), (places, ids.ravel())), shape=(len(rows), HASHED))
    return columns, np.array([int(row[-1]) for row in rows])


def prepared_columns(folder: Path, name: str) -> tuple[Any, Any]:
    """One-hot columns of the prepared ids beside the dense columns of a split, and its labels."""
    from scipy import sparse

    manifest = Manifest.load(str(folder / "prepared"))
    files = [pq.read_table(file.location(str(folder / "prepared"))) for file in manifest.splits[name].files]
    table, spec = pa.concat_tables(files), manifest.spec
    parts = [sparse.csr_matrix(np.stack([table[each.name].to_numpy() for each in spec.dense], axis=1))]
    for feature in spec.sparse:
        ids, rows = table[feature.name].to_numpy(), len(table)
        parts.append(sparse.csr_matrix((np.ones(rows), (np.arange(rows), ids)), shape=(rows, feature.rows)))
    return sparse.hstack(parts).tocsr(), table[spec.label].to_numpy()


def fitted(train: tuple[Any, Any], val: tuple[Any, Any]) -> float:
    """The validation AUC of scikit-learn's logistic regression with its own settings, but for the iterations."""
    from sklearn.linear_model import LogisticRegression  # type: ignore[import-not-found]  # no dependency of ours
    from sklearn.metrics import roc_auc_score  # type: ignore[import-not-found]

    model = LogisticRegression(max_iter=2000).fit(*train)
    return float(roc_auc_score(val[1], model.decision_function(val[0])))


def measure(folder: Path, rows: int, share: float, seed: int) -> dict[str, float]:
    """The AUC of every contender on one file."""
    run(
        folder, "data/practice/generate.py", "--output=clicks.csv", f"--rows={rows}", f"--positive_share={share}",
        f"--seed={seed}",
    )  # fmt: skip
    split(folder, seed)
    run(folder, "-m", "dlrm_torchrec.preparation.propose", "train.csv", "--output", "spec.json")
    run(
        folder, "data/criteo/prepare.py", "table", "--spec", "spec.json", "--input", "train.csv", "--val", "val.csv",
        "--output", "prepared",
    )  # fmt: skip
    found = {"train_dlrm": trained(folder, "train_dlrm"), "train_logistic": trained(folder, "train_logistic")}
    if importlib.util.find_spec("sklearn") is not None:
        found["sklearn raw"] = fitted(raw_columns(folder / "train.csv"), raw_columns(folder / "val.csv"))
        found["sklearn ids"] = fitted(prepared_columns(folder, "train"), prepared_columns(folder, "val"))
    return found


def main(sizes: tuple[int, ...] = (1_000, 10_000, 200_000), seeds: int = 3, share: float = 0.2) -> None:
    print("rows     seed  minus the floor  AUC")
    for rows in sizes:
        differences = []
        for seed in range(seeds):
            with tempfile.TemporaryDirectory() as folder:
                found = measure(Path(folder), rows, share, seed)
            floors = [auc for name, auc in found.items() if name.startswith("sklearn")] or [found["train_logistic"]]
            differences.append(found["train_dlrm"] - max(floors))
            shown = ", ".join(f"{name} {auc:.4f}" for name, auc in found.items())
            print(f"{rows:<7}  {seed:<4}  {differences[-1]:+.4f}          {shown}", flush=True)
        print(f"{rows:<7}  mean  {np.mean(differences):+.4f}", flush=True)


if __name__ == "__main__":
    tyro.cli(main)
