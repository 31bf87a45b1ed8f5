"""Node-local tables against fully sharded tables and a single node: bytes, time, AUC, and how far tables drift apart.

    OMP_NUM_THREADS=1 torchrun --standalone --nproc_per_node 2 benchmarks/local_embeddings.py

Two nodes of one process each train the demo of recipes/train_dlrm_local_embeddings.py. All contenders take turns, start
from the same weights and train the same global rows, which are half of the demo's rows; a run takes about 10 seconds.
"one node alone" is a single node that gets half of the rows and half of each batch. All are evaluated on the same
validation rows. The report shows the AUC of a single node and of the mean of the nodes' probabilities, and next to each
its difference to the fully sharded model with the same seed.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from statistics import mean, median, stdev

import tyro

from dlrm_torchrec.command_line import parse
from dlrm_torchrec.recipe import TrainingRecipe, load_training_recipe

ROWS, BATCH = 1_228_800, 2048
ALONE = "one node alone, half the rows"
CONTENDERS = {
    "fully sharded": ["--node-size=2", "--sharding.kind=table_wise"],
    "local, averaged at every step": ["--average-every=1"],
    "local, averaged every 10 steps": ["--average-every=10"],
    "local, averaged every 100 steps": ["--average-every=100"],
    "local, never averaged": ["--average-every=0"],
}


def train(recipe: TrainingRecipe, options: list[str], *, share: int, seed: int, folder: str) -> dict[str, float]:
    """The recipe's metrics after training on 1 / ``share`` of the rows."""
    options = [*options, f"--rows={ROWS // share}", f"--batch-size={BATCH // share}"]
    options += ["--eval-every=145"]  # between the averages of every 10 and every 100 steps
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        return recipe.main(*parse(recipe.PRESETS, ["demo", *options, f"--seed={seed}", f"--run-dir={folder}"]))


def distances(folder: str) -> str:
    """The relative distance of the nodes' tables at each evaluation."""
    records = [json.loads(line) for line in Path(folder, "demo/metrics.jsonl").read_text().splitlines()]
    return " ".join(f"{r['val/relative_distance']:.2f}" for r in records if "val/relative_distance" in r)


def report(runs: dict[str, list[dict[str, float]]]) -> None:
    sharded = runs["fully sharded"]
    print(f"{'':<31} bytes/step     ms     of  AUC of a node              AUC of the mean")
    for title, found in runs.items():
        sent, batch_size = found[0]["step_bytes"], BATCH // 2 if title == ALONE else BATCH
        milliseconds = [1e3 * batch_size / run["samples_per_s"] for run in found]
        ratio = median(ms * base["samples_per_s"] / 1e3 / BATCH for ms, base in zip(milliseconds, sharded, strict=True))
        nodes = [mean(run[name] for name in ("val/node0/auc", "val/node1/auc") if name in run) for run in found]
        together = [run["val/auc"] for run in found]
        aucs = "  ".join(against(each, [run["val/auc"] for run in sharded]) for each in (nodes, together))
        print(f"{title:<31} {sent:10,.0f} {median(milliseconds):6.1f} {ratio:6.2f}  {aucs}")
    print(f"best possible AUC: {mean(run['teacher/auc'] for run in sharded):.4f}")


def against(values: list[float], others: list[float]) -> str:
    """The mean of ``values``, and mean and standard deviation of their differences to ``others``."""
    differences = [value - other for value, other in zip(values, others, strict=True)]
    return f"{mean(values):.4f} ({mean(differences):+.4f} ± {stdev(differences):.4f})"


def alone(recipe: TrainingRecipe, seed: int) -> dict[str, float]:
    """The metrics of a run in which every rank trains by itself, as if it had been started by hand."""
    launched = {name: os.environ.pop(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")}
    try:
        with tempfile.TemporaryDirectory() as folder:
            return train(recipe, [], share=2, seed=seed, folder=folder)
    finally:
        os.environ |= launched


def main(seeds: int = 3) -> None:
    """Prints one line per contender, with means over seeds and medians of milliseconds."""
    recipe = load_training_recipe("train_dlrm_local_embeddings")
    folder = f"{tempfile.gettempdir()}/local_embeddings-{os.getppid()}"  # the same for all ranks of one launcher
    runs: dict[str, list[dict[str, float]]] = {title: [] for title in [*CONTENDERS, ALONE]}
    for seed in range(seeds):
        for title, options in CONTENDERS.items():
            runs[title].append(train(recipe, options, share=1, seed=seed, folder=f"{folder}/{title}/{seed}"))
        runs[ALONE].append(alone(recipe, seed))
    if os.environ["RANK"] == "0":
        report(runs)
        print("relative distance of the nodes' tables, every 145 steps and at the end:")
        for title in CONTENDERS:
            print(f"{title:<31} {distances(f'{folder}/{title}/0')}")
        shutil.rmtree(folder)


if __name__ == "__main__":
    tyro.cli(main)
