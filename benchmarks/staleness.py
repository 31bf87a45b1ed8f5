"""What staleness costs, and what daily training saves: synthetic days with drift, whose best AUC is known.

    python benchmarks/staleness.py --plot staleness.svg                # thirty days, some ten minutes on 2 CPU cores
    python benchmarks/staleness.py --tables managed hash --living 0.5  # at equal bytes, optimizer and maps included

recipes/train_dlrm_daily.py goes over the days once, and is judged by each day before it is trained on that day
(progressive AUC). The same model is trained from scratch by recipes/train_dlrm.py on all days before some day, shuffled
and with a decaying learning rate, and judged by that day. Models of earlier days are judged by later ones, too: a model
of age 0 was trained until the evening before. Goals: at most .003 of AUC below training from scratch, for a tenth of
its rows a day or fewer.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torchmetrics.functional.classification import binary_auroc

from dlrm_torchrec.datasets.prepared.manifest import DataFile, Manifest, Split
from dlrm_torchrec.datasets.stream import Ranks
from dlrm_torchrec.datasets.synthetic.drift import DayStream, DriftingClicks
from dlrm_torchrec.datasets.synthetic.specs import drift_spec
from dlrm_torchrec.embeddings.config import TablesConfig
from dlrm_torchrec.embeddings.tables import build_tables, bytes_of_ids, physical_configs
from dlrm_torchrec.inference.quantization import load_trained
from dlrm_torchrec.recipe import load_recipe
from dlrm_torchrec.schema import DatasetSpec
from dlrm_torchrec.train.checkpoints.folder import step_path
from dlrm_torchrec.train.config import CheckpointConfig, Schedule

AGES = (0, 1, 3, 7)
GAP, ROWS_SHARE = 0.003, 0.1  # the goals
GROUP_ROWS = 65_536
DIM, MOMENT_BYTES = 16, 4


@dataclass(frozen=True)
class Setup:
    """How tables are stored, for one stream of rows."""

    kind: str
    spec: DatasetSpec
    tables: TablesConfig
    living: float  # ids that live on a day, for each row

    @property
    def bytes(self) -> int:
        """Of weights, moments and maps."""
        stored = physical_configs(build_tables(self.spec.tables(DIM), self.tables))
        return sum(each.num_embeddings * (4 * DIM + MOMENT_BYTES) + bytes_of_ids(each) for each in stored)


def setup(kind: str, living: float) -> Setup:
    """Plain ids that return; or ids without end, managed, or hashed into tables that take as many bytes."""
    if kind == "plain":
        return Setup(kind, drift_spec(), TablesConfig(), living)
    managed = Setup(kind, drift_spec(encoding="managed"), TablesConfig(), living)
    if kind == "managed":
        return managed
    more = managed.bytes / sum((4 * DIM + MOMENT_BYTES) * feature.rows for feature in managed.spec.sparse)
    rows = [round(more * feature.rows) for feature in managed.spec.sparse]
    return Setup(kind, drift_spec(rows, encoding="managed"), TablesConfig(kind="hash"), living / more)


def measure(case: Setup, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Everything that is measured of one way to store tables."""
    daily = load_recipe("train_dlrm_daily")
    windows = replace(daily.Config().windows, days=args.days)
    windows = replace(windows, drift=replace(windows.drift, living=case.living))
    cfg = daily.Config(
        rows=args.rows,
        shape=case.spec,
        tables=case.tables,
        windows=windows,
        seed=args.seed,
        run_dir=str(folder / "daily"),
        checkpoint=CheckpointConfig(keep=args.days, minutes=0),
    )
    with redirect_stdout(sys.stderr):
        final = daily.main(case.kind, cfg)
    auc = {day: final[f"windows/day-{day:04d}/val/auc"] for day in range(1, args.days)}
    best = {day: final[f"windows/day-{day:04d}/teacher/auc"] for day in range(args.days)}
    world = DriftingClicks(case.spec, windows.drift, seed=args.seed)
    judged = sorted({*range(args.scratch_every, args.days, args.scratch_every), args.days - 1})
    scratch = {day: from_scratch(case, cfg, world, day=day, folder=folder) for day in judged}
    lost = staleness(daily, cfg, f"{cfg.run_dir}/{case.kind}/checkpoints", auc)
    gaps = [scratch[day] - auc[day] for day in judged]
    return {
        "tables": case.kind,
        "mbytes": round(case.bytes / 1e6, 2),
        "progressive_auc": round(fmean(auc.values()), 5),
        "from_scratch": {day: round(value, 5) for day, value in scratch.items()},
        "behind_scratch": round(fmean(gaps), 5),
        "largest_gap": round(max(gaps), 5),
        "rows_share": {day: round(1 / day, 4) for day in judged},
        "staleness": {age: round(value, 5) for age, value in lost.items()},
        "goal": max(gaps) <= GAP and 1 / judged[-1] <= ROWS_SHARE,
        "auc": {day: round(value, 5) for day, value in auc.items()},
        "best_auc": {day: round(value, 5) for day, value in best.items()},
    }


def from_scratch(case: Setup, cfg: Any, world: DriftingClicks, *, day: int, folder: Path) -> float:
    """The AUC on ``day`` of a model that train_dlrm trains on the shuffled rows of all days before."""
    data = folder / f"until-{day}"
    splits = {"train": range(day), "val": range(day, day + 1)}
    files = {split: tuple(write_day(world, each, cfg.rows, data) for each in days) for split, days in splits.items()}
    Manifest(spec=case.spec, splits={split: Split(files=each) for split, each in files.items()}).save(str(data))
    recipe = load_recipe("train_dlrm")
    schedule = Schedule(warmup_steps=50, decay_start=50, decay_steps=-1, power=1)
    same = {name: getattr(cfg, name) for name in ("batch_size", "bottom", "top", "tables", "sparse", "dense", "seed")}
    scratch = recipe.Config(
        data=str(data), schedule=schedule, eval_every=0, run_dir=str(folder / f"scratch-{day}"), **same
    )
    with redirect_stdout(sys.stderr):
        found: float = recipe.main(case.kind, scratch)["val/auc"]
    shutil.rmtree(data)
    return found


def write_day(world: DriftingClicks, day: int, rows: int, folder: Path) -> DataFile:
    """The rows of a day as a file of a prepared folder."""
    columns, _ = world.rows(day, 0, rows)
    spec = world.spec
    kind = pa.int64() if any(feature.ids > 2**31 for feature in spec.sparse) else pa.int32()
    table = {spec.label: pa.array(columns.labels)}
    table |= {feature.name: pa.array(columns.dense[:, i]) for i, feature in enumerate(spec.dense)}
    table |= {f.name: pa.array(bags.values).cast(kind) for f, bags in zip(spec.sparse, columns.sparse, strict=True)}
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.table(table), folder / f"day-{day}.parquet", row_group_size=GROUP_ROWS)
    return DataFile(path=f"day-{day}.parquet", rows=rows)


def staleness(daily: Any, cfg: Any, checkpoints: str, auc: dict[int, float]) -> dict[int, float]:
    """The mean loss of AUC of models of each age, on the same days for all ages, in the second half of the run.

    A model of age a that judges day d was trained until the end of day d - 1 - a; ``auc`` is that of age 0.
    """
    days = range(max(max(AGES) + 1, cfg.windows.days // 2), cfg.windows.days)
    steps_a_day = -(-cfg.rows // cfg.batch_size)
    losses: dict[int, list[float]] = {age: [] for age in AGES}
    world = DriftingClicks(cfg.shape, cfg.windows.drift, seed=cfg.seed)
    for last in range(cfg.windows.days - 1):  # that the model was trained on
        wanted = {age: last + 1 + age for age in AGES if last + 1 + age in days}
        if wanted:
            checkpoint = step_path(checkpoints, (last + 1) * steps_a_day)
            model = load_trained(daily.build, cfg, cfg.shape, checkpoint).model
            for age, day in wanted.items():
                rows = DayStream(world, day, num_rows=cfg.rows, ranks=Ranks(8192, 0, 1))
                losses[age].append(auc[day] - judge(model, rows))
    return {age: fmean(each) for age, each in losses.items()}


@torch.inference_mode()
def judge(model: torch.nn.Module, day: DayStream) -> float:
    """The AUC of a model on the rows of a day."""
    logits, labels = [], []
    for batch in day.batches():
        logits.append(model(batch.dense_features, batch.sparse_features).flatten()[: batch.num_rows])
        labels.append(batch.labels[: batch.num_rows])
    return float(binary_auroc(torch.cat(logits).double(), torch.cat(labels).long(), validate_args=False))


def draw(found: list[dict[str, Any]], path: str) -> None:
    """Writes a picture: AUC by day beside the best possible one, and what age costs."""
    from matplotlib.figure import Figure  # only pictures need it

    figure = Figure(figsize=(10, 3.8), layout="constrained")
    by_day, by_age = figure.subplots(1, 2, width_ratios=(3, 2))
    best = found[0]["best_auc"]
    by_day.plot(list(best), list(best.values()), color="#636b76", linestyle="--", label="best possible")
    for each in found:
        (line,) = by_day.plot(list(each["auc"]), list(each["auc"].values()), label=f"{each['tables']}, daily")
        days = each["from_scratch"]
        by_day.scatter(list(days), list(days.values()), color=line.get_color(), marker="x", label="from scratch")
        by_age.plot(list(each["staleness"]), list(each["staleness"].values()), "o-", label=each["tables"])
    by_day.set(xlabel="day", ylabel="AUC before training on it")
    by_age.set(xlabel="age of the model, days", ylabel="AUC lost")
    for place in (by_day, by_age):
        place.grid(alpha=0.3)
        place.spines[["top", "right"]].set_visible(False)
        place.legend(frameon=False, fontsize=8)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", nargs="+", choices=("plain", "managed", "hash"), default=["plain"])
    parser.add_argument("--days", type=int, default=30)
    parser.add_argument("--rows", type=int, default=102_400, help="rows of a day")
    parser.add_argument("--scratch-every", type=int, default=10, help="days between two trainings from scratch")
    parser.add_argument("--living", type=float, default=0.25, help="ids that live on a day, for each row of a table")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", default="", help="picture to draw; empty means none")
    args = parser.parse_args()
    found = []
    for kind in args.tables:
        with tempfile.TemporaryDirectory() as folder:
            found.append(measure(setup(kind, args.living), args, Path(folder)))
        print(json.dumps(found[-1]), flush=True)
    if args.plot:
        draw(found, args.plot)


if __name__ == "__main__":
    main()
