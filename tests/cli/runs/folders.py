"""Made-up run folders, as a recipe leaves them."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

CONFIG = {"preset": "demo", "run_dir": "runs/x", "sparse": {"kind": "sgd", "lr": 0.1}, "top": [64, 1]}


def write_run(
    folder: Path, *, steps: int = 100, every: int = 5, seed: int = 0, config: dict[str, Any] | None = None
) -> list[dict[str, Any]]:
    """Writes a run with two checkpoints, of which the first is the better one; its records."""
    draw = random.Random(seed)
    records: list[dict[str, Any]] = []
    for step in range(every, steps + 1, every):
        records.append({"step": step, "train/loss": draw.random(), "samples_per_s": draw.uniform(1e5, 3e5)})
        if step % (4 * every) == 0:
            metrics = {"auc": draw.random(), "ne": draw.uniform(0.7, 1.1), "calibration": draw.uniform(0.8, 1.2)}
            records.append({"step": step, **{f"val/{name}": value for name, value in metrics.items()}})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / "config.json").write_text(json.dumps(CONFIG if config is None else config))
    best = {"auc": 0.8125}
    for step, last in ((steps // 2, best), (steps, {"auc": 0.75})):
        path = folder / "checkpoints" / f"step-{step:08d}"
        path.mkdir(parents=True)
        marker = {"format": 4, "step": step, "last": last, "best": best, "best_step": steps // 2, "plan": PLAN}
        marker["files"] = {"0": {"num_bytes": 1_500_000}, "1": {"num_bytes": 500_000}}
        (path / "checkpoint.json").write_text(json.dumps(marker))
    return records


PLAN = {
    "t_a": {
        "sharding_type": "row_wise",
        "shards": [{"rank": rank, "offset": [0, 0], "size": [50, 8]} for rank in (0, 1)],
    },
    "t_b": {
        "sharding_type": "data_parallel",
        "shards": [{"rank": rank, "offset": [0, 0], "size": []} for rank in (0, 1)],
    },
    "t_c": {"sharding_type": "table_wise", "shards": [{"rank": 1, "offset": [0, 0], "size": [30, 8]}]},
}
MODEL = {
    "parts": [
        {"name": "tables", "parameters": 1120, "weight_bytes": 4480, "moment_bytes": 560, "multiply_adds": 0,
         "moved_bytes": 96},
        {"name": "top MLP", "parameters": 80, "weight_bytes": 320, "moment_bytes": 640, "multiply_adds": 640,
         "moved_bytes": 500},
    ],
    "tables": {
        name: {"rows": rows, "dim": 8, "element_bytes": 4} for name, rows in (("t_a", 100), ("t_b", 10), ("t_c", 30))
    },
}  # fmt: skip
