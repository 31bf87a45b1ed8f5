"""AUC of fitted tables against tables that are all compressed equally, with the same bytes.

    python benchmarks/table_fit_quality.py

Trains on half of the rows of recipes/train_dlrm.py's demo, whose best possible AUC is known, one process at a time.
The tables are plain, or every table above the threshold is compressed equally, or they are fitted to the bytes of the
latter by the frequencies of the training ids. A run takes about half a minute.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import tyro
from torchrec.optim import RowWiseAdagrad

from dlrm_torchrec.datasets.profile import summary
from dlrm_torchrec.datasets.synthetic.clicks import SyntheticStream
from dlrm_torchrec.datasets.synthetic.specs import demo_spec
from dlrm_torchrec.embeddings.config import TablesConfig
from dlrm_torchrec.embeddings.tables import write_tables
from dlrm_torchrec.sharding.planner.fit import Choice, best, choices

ROOT = Path(__file__).parent.parent
ROWS, BATCH = 1_228_800, 2048
PROFILED = 200 * BATCH


def demo_choices() -> dict[str, list[Choice]]:
    """The ways to store each table of the demo; losses come from the frequencies of ids in the first training rows."""
    spec = demo_spec()
    counts = {feature.name: np.zeros(feature.rows, dtype=np.int64) for feature in spec.sparse}
    stream = SyntheticStream(
        spec, split="train", num_rows=PROFILED, global_batch_size=BATCH, rank=0, world_size=1, seed=0
    )
    for batch in stream.batches():
        for name, ids in counts.items():
            np.add.at(ids, batch.sparse_features[name].values().numpy(), 1)
    return {
        table.name: choices(
            table,
            TablesConfig(),
            RowWiseAdagrad,
            pooling_factor=feature.pooling_factor,
            access=summary(counts[feature.name], PROFILED, reuse=0.0),
        )
        for table, feature in zip(spec.tables(dim=16), spec.sparse, strict=True)
    }


def train(chosen: Mapping[str, Choice], seed: int) -> dict[str, float]:
    """The final metrics of a run with these tables."""
    with tempfile.TemporaryDirectory() as folder:
        tables = f"{folder}/tables.json"
        write_tables(tables, {name: choice.config for name, choice in chosen.items()}, TablesConfig())
        command = [sys.executable, str(ROOT / "recipes/train_dlrm.py"), "demo", f"--rows={ROWS}", "--eval-every=0"]
        command += [f"--tables.file={tables}", f"--seed={seed}", f"--run-dir={folder}"]
        done = subprocess.run(command, env={"OMP_NUM_THREADS": "1", **os.environ}, capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr)
        return json.loads(done.stdout.splitlines()[-1])


def main(seeds: int = 3, strengths: tuple[int, ...] = (4, 8, 16)) -> None:
    ways = demo_choices()
    contenders = {"plain": {name: each[0] for name, each in ways.items()}}
    for strength in strengths:
        equal = {
            name: next(
                (way for way in each if way.config.kind != "plain" and way.config.collisions == strength), each[0]
            )
            for name, each in ways.items()
        }
        fitted = best(ways, sum(choice.bytes for choice in equal.values()))
        assert fitted is not None
        contenders |= {f"equally, {strength} ids per row": equal, f"fitted to the bytes of {strength}": fitted}
    print(f"{'tables':<26}  {'bytes':>9}  {'loss':>6}  AUC by seed (best possible)")
    for name, chosen in contenders.items():
        size, loss = (sum(getattr(choice, field) for choice in chosen.values()) for field in ("bytes", "loss"))
        found = [train(chosen, seed) for seed in range(seeds)]
        aucs = ", ".join(f"{each['val/auc']:.4f} ({each['teacher/auc']:.4f})" for each in found)
        mean = sum(each["val/auc"] for each in found) / seeds
        print(f"{name:<26}  {size:>9,}  {loss:>6.3f}  {aucs}; mean {mean:.4f}", flush=True)


if __name__ == "__main__":
    tyro.cli(main)
