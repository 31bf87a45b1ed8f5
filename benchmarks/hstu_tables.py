"""What smaller tables cost the small twin of MLPerf's dlrm_v4_hstu: AUC at equal bytes.

    python benchmarks/hstu_tables.py --seeds 3

Trains recipes/train_hstu.py's mlperf-twin, whose best possible AUC is known, one process at a time. Tables are plain,
or all above the threshold have a quarter of their rows, by quotients and remainders or by hashing, or they are fitted
to the same bytes as plan_sharding's --fit does: some tables shrink strongly and others not at all. A seed is another
world of users, the same one for all ways. A run takes about two minutes on an idle core.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from statistics import mean, stdev

import tyro
from torchrec.optim import RowWiseAdagrad

from dlrm_torchrec.datasets.sequences.yambda import yambda_twin_spec
from dlrm_torchrec.embeddings.config import TablesConfig
from dlrm_torchrec.embeddings.tables import write_tables
from dlrm_torchrec.sharding.planner.fit import Choice, best, choices

ROOT = Path(__file__).parent.parent
DIM = 32  # of the twin's tables


def ways(base: TablesConfig) -> dict[str, list[Choice]]:
    """The ways to store each table of the twin, plain first, with the kind of ``base``; plain means that of --fit."""
    spec = yambda_twin_spec()
    lookups = {feature.name: feature.pooling_factor for feature in spec.sparse}
    return {
        table.name: choices(table, base, RowWiseAdagrad, pooling_factor=lookups[table.features[0]], access=None)
        for table in spec.tables(dim=DIM)
    }


def contenders(strength: int) -> dict[str, dict[str, Choice]]:
    """How each table is stored, by contender: plain, or with ``strength`` ids per row, or fitted to as many bytes."""
    found = {"plain": {name: each[0] for name, each in ways(TablesConfig()).items()}}
    for base in (TablesConfig(kind="quotient_remainder"), TablesConfig(kind="hash")):
        found[f"all {base.kind}"] = {
            name: next((way for way in each[1:] if way.config.collisions == strength), each[0])
            for name, each in ways(base).items()
        }
    fitted = best(ways(TablesConfig()), sum(choice.bytes for choice in found["all quotient_remainder"].values()))
    assert fitted is not None
    return found | {"fitted": fitted}


def train(chosen: Mapping[str, Choice], *, seed: int, users: int) -> dict[str, float]:
    """The final metrics of a run with these tables."""
    with tempfile.TemporaryDirectory() as folder:
        tables = f"{folder}/tables.json"
        write_tables(tables, {name: choice.config for name, choice in chosen.items()}, TablesConfig())
        command = [sys.executable, str(ROOT / "recipes/train_hstu.py"), "mlperf-twin", f"--rows={users}"]
        command += [f"--tables.file={tables}", f"--seed={seed}", f"--run-dir={folder}", "--speed=exact"]
        done = subprocess.run(command, env={"OMP_NUM_THREADS": "1", **os.environ}, capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr)
        return json.loads(done.stdout.splitlines()[-1])


def main(seeds: int = 3, strength: int = 4, users: int = 100) -> None:
    found = contenders(strength)
    aucs: dict[str, list[float]] = {name: [] for name in found}
    for seed in range(seeds):
        for name, chosen in found.items():
            metrics = train(chosen, seed=seed, users=users)
            aucs[name].append(metrics["val/auc"])
            print(f"seed {seed}  {name:<24}  {metrics['val/auc']:.4f} ({metrics['teacher/auc']:.4f})", flush=True)
    print(f"{'tables':<24}  {'bytes':>9}  {'lookups that share rows':>23}  AUC; loss of AUC to plain tables")
    for name, chosen in found.items():
        size, loss = (sum(getattr(choice, field) for choice in chosen.values()) for field in ("bytes", "loss"))
        lost = [before - after for before, after in zip(aucs["plain"], aucs[name], strict=True)]
        spread = f" ± {stdev(lost):.4f}" if seeds > 1 else ""
        print(f"{name:<24}  {size:>9,}  {loss:>23.2f}  {mean(aucs[name]):.4f}; {mean(lost):.4f}{spread}")


if __name__ == "__main__":
    tyro.cli(main)
