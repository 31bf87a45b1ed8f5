"""AUC of matrix factorisation whose user and item tables have a few hundred rows each, for each way to share rows.

    python benchmarks/user_item_tables.py                                    # made-up interactions, as many as ML-1M
    python benchmarks/user_item_tables.py --data prepared/ml-1m-next --item movie   # your copy of MovieLens-1M

data/movielens/README.md says how to prepare your copy. The made-up interactions have MovieLens-1M's numbers of users,
items and ratings: the taste of a user is 16 numbers, the logit of an item is their product with 16 numbers of the item
plus its popularity, and users take their items without repetition. recipes/train_mf.py, with vectors of 32 numbers,
ranks each user's last item among 99 others. Both tables get the same number of rows of 32 numbers.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tyro

ROOT = Path(__file__).parent.parent
USERS, ITEMS, RATINGS = 6_040, 3_706, 1_000_209
LEAST, MOST = 20, 2_314  # ratings of a user
FACTORS, TASTE = 8, 0.9  # numbers of a user and of an item; standard deviation of their product
POPULARITY = 1.45  # standard deviation of an item's own logit

KIND = "--tables.kind={} --tables.max-rows={{rows}}"
CONCAT = "--tables.operation=concat --tables.partitions=4 --tables.max-rows={four}"
WAYS = {  # of tables with so many rows of 32 numbers, or as many numbers
    "hash": KIND.format("hash"),
    "2 hashes, added": KIND.format("hashes"),
    "2 hashes, concatenated": "--tables.kind=hashes --tables.operation=concat --tables.max-rows={twice}",
    "4 hashes, concatenated": f"--tables.kind=hashes {CONCAT}",
    "quotient-remainder, mult": KIND.format("quotient_remainder"),
    "Chinese remainder, mult": KIND.format("chinese_remainder"),
    "hot_cold": f"{KIND.format('hot_cold')} --tables.hot=0.5",
    "hot_cold, 4 hashes": f"--tables.kind=hot_cold --tables.hot=0.5 --tables.tail=hashes {CONCAT}",
    "mixed dims": "--tables.kind=mixed_dimension --tables.threshold=0 --tables.budget={numbers}",
}
LEAST_DIM = 4  # of mixed dims


def interactions(seed: int = 0) -> pa.Table:
    """Users and items, a row for each rating, the ratings of a user in the order in which they were made."""
    random = np.random.default_rng(seed)
    scales = 1 / np.arange(1, FACTORS + 1, dtype=np.float32)
    scales *= np.float32(TASTE / np.linalg.norm(scales))
    users, items = (random.standard_normal((count, FACTORS), np.float32) for count in (USERS, ITEMS))
    logits = users * scales @ items.T + np.float32(POPULARITY) * random.standard_normal(ITEMS, np.float32)
    activity = random.lognormal(sigma=1.1, size=USERS)
    counts = LEAST + np.floor(activity / activity.sum() * (RATINGS - LEAST * USERS)).astype(np.int64)
    counts = np.minimum(counts, MOST)
    # The places of the largest sums of logits and Gumbel noise are draws without replacement.
    order = np.argsort(np.log(random.standard_exponential(logits.shape)) - logits, axis=1)
    taken = [random.permutation(row[:count]) for row, count in zip(order, counts, strict=True)]
    return pa.table({"user": np.repeat(np.arange(USERS), list(map(len, taken))), "item": np.concatenate(taken)})


def prepare(folder: str) -> str:
    """The prepared folder of made-up interactions."""
    pq.write_table(interactions(), f"{folder}/ratings.parquet")
    options = ["--task=implicit", "--split=leave_one_out", "--negatives=0", f"--output={folder}/prepared"]
    called("data/movielens/prepare.py", f"--input={folder}/ratings.parquet", *options)
    return f"{folder}/prepared"


def called(*command: str) -> str:
    """What a script of this project prints; ends with its error if it fails."""
    done = subprocess.run(
        [sys.executable, str(ROOT / command[0]), *command[1:]],
        env={"OMP_NUM_THREADS": "1", **os.environ}, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        sys.exit(done.stderr)
    return done.stdout


def main(
    *,
    data: str = "",
    item: str = "item",
    rows: tuple[int, ...] = (256, 2048),
    seeds: tuple[int, ...] = (0, 1, 2),
    epochs: int = 4,
    lr: float = 0.3,
) -> None:
    """Prints mean ± standard deviation over seeds.

    Args:
        data: a folder of interactions, prepared with --task implicit --split leave_one_out; empty means made-up ones
        item: the column of the items
        rows: rows of 32 numbers that each of the two tables has
        seeds: seeds of the initial weights and of the order of rows
        epochs: passes over the interactions, each with other negatives
        lr: learning rate of the tables
    """
    with tempfile.TemporaryDirectory() as folder:
        common = ["ml-1m", f"--data={data or prepare(folder)}", "--columns", "user", item, f"--epochs={epochs}"]
        common += [f"--sparse.lr={lr}", "--eval-every=0", "--batch-size=10240"]
        ways = {("plain", 0): list[str]()} | {
            (name, size): options.format(rows=size, twice=2 * size, four=4 * size, numbers=2 * 32 * size).split()
            for size in rows
            for name, options in WAYS.items()
            if name != "mixed dims" or 2 * 32 * size >= LEAST_DIM * (USERS + ITEMS)
        }
        for (name, size), options in ways.items():
            found = []
            for seed in seeds:
                run = [f"--run-dir={folder}/{name}-{size}-{seed}", f"--seed={seed}"]
                printed = called("recipes/train_mf.py", *common, *options, *run)
                found.append(json.loads(printed.splitlines()[-1])["val/auc"])
            spread = stdev(found) if len(found) > 1 else 0.0
            print(f"{size or 'all':>5} rows  {name:<26} {mean(found):.4f} ± {spread:.4f}", flush=True)


if __name__ == "__main__":
    tyro.cli(main)
