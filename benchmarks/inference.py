"""How few bits change a model's latency and throughput on one CPU core: alone, and under load.

    python benchmarks/inference.py latency --plot latency.png       # every model and batch size, as it is served
    python benchmarks/inference.py latency --models dlrm --sizes 64 --rounds 200
    python benchmarks/inference.py load                             # queries per second at a p95 of 25 ms

The contenders take turns in one process with one thread: the float32 model as it is trained (eager); the scripted model
with fp16, int8 or int4 tables; and the scripted model with int8 tables and int8 MLPs, as recipes/quantize_dlrm.py
writes it. The models are a DLRM with 26 tables of 40,000 x 64 and large MLPs, and DeepRecSys' RMC1 to RMC3. The latter
have the published widths and lookups but only ``--rows-share`` of the rows, so that all contenders fit into memory
together. Under load, queries arrive as a Poisson process. A query has N(165, 16) items, at most 1,024 (DeepRecSys, ISCA
2020), and is one batch of a single worker, first come, first served.
"""

from __future__ import annotations

import argparse
import copy
import queue
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torchrec.models.dlrm import DLRM

from dlrm_torchrec.datasets.synthetic.uniform import uniform_batch
from dlrm_torchrec.embeddings.tables import Tables, build_tables
from dlrm_torchrec.inference.config import TableType
from dlrm_torchrec.inference.forms.labels import Rows
from dlrm_torchrec.inference.mlps.quantize import quantize_mlps
from dlrm_torchrec.inference.scoring import Scorer, script
from dlrm_torchrec.inference.tables.serve import serve_tables, table_weights
from dlrm_torchrec.recipe import load_training_recipe
from dlrm_torchrec.schema import DatasetSpec, DenseFeature, SparseFeature

Inputs = tuple[Any, ...]  # of a program
Model = Callable[..., Any]
EAGER, FULL = "fp32 eager", "int8 tables + int8 MLP"
MEAN_ITEMS, STD_ITEMS, MOST_ITEMS, BOUND_MS = 165, 16, 1024, 25.0


def dlrm() -> tuple[nn.Module, Tables, DatasetSpec]:
    """The DLRM for which the speed goal is stated: 26 tables of 40,000 x 64."""
    spec = DatasetSpec(
        name="dlrm",
        label="click",
        dense=tuple(DenseFeature(name=f"d{i}") for i in range(13)),
        sparse=tuple(SparseFeature(name=f"s{i}", rows=40_000) for i in range(26)),
    )
    tables = build_tables(spec.tables(64))
    return DLRM(tables, 13, [512, 256, 64], [512, 512, 256, 1], torch.device("cpu")), tables, spec


def rmc(preset: str, rows_share: float) -> tuple[nn.Module, Tables, DatasetSpec]:
    recipe = load_training_recipe("train_rmc")
    cfg = recipe.PRESETS[preset]
    sparse = tuple(replace(each, rows=max(int(each.rows * rows_share), 1)) for each in cfg.shape.sparse)
    spec = replace(cfg.shape, sparse=sparse)
    task, tables = recipe.build(cfg, spec, 1, torch.device("cpu"))
    return task.model, tables, spec


def contenders(name: str, rows_share: float) -> tuple[DatasetSpec, dict[str, Model]]:
    model, tables, spec = dlrm() if name == "dlrm" else rmc(name, rows_share)
    tables.to_empty(device="cpu")
    with torch.no_grad():
        for weight in table_weights(tables).values():
            nn.init.normal_(weight, std=0.05)
    features = [feature.name for feature in spec.sparse]
    found: dict[str, Model] = {EAGER: Scorer(model.eval(), spec)}
    kinds: tuple[TableType, ...] = ("fp16", "int8", "int4")
    for kind in kinds:
        own = copy.deepcopy(model, {id(tables): tables})  # copies everything except the tables
        served = serve_tables(own, tables, dict.fromkeys(table_weights(tables), kind), features)
        found[f"{kind} tables"] = script(Scorer(served, spec))
        if kind == "int8":
            seen = [Rows(spec).inputs(uniform_batch(spec, 1024))]
            found[FULL] = script(Scorer(quantize_mlps(served, "static", seen), spec))
    return spec, found


def seconds(model: Model, given: Inputs) -> float:
    start = time.perf_counter()
    model(*given)
    return time.perf_counter() - start


@torch.inference_mode()
def latencies(spec: DatasetSpec, models: dict[str, Model], size: int, rounds: int) -> dict[str, np.ndarray]:
    """Milliseconds (rounds,) of each contender; the contenders take turns, and every round has fresh inputs."""
    found: dict[str, list[float]] = {label: [] for label in models}
    for number in range(rounds + 5):
        given = Rows(spec).arguments(uniform_batch(spec, size))
        for label, model in models.items():
            taken = 1e3 * seconds(model, given)
            if number >= 5:  # TorchScript compiles in its first calls
                found[label].append(taken)
    return {label: np.array(values) for label, values in found.items()}


def latency(args: argparse.Namespace) -> None:
    rows = []
    print("| model | batch | contender | p50 ms | p95 | p99 | items/s | of fp32 eager |\n" + "|---" * 8 + "|")
    for name in args.models:
        spec, models = contenders(name, args.rows_share)
        for size in args.sizes:
            found = latencies(spec, models, size, args.rounds)
            base = np.median(found[EAGER])
            for label, values in found.items():
                p50, p95, p99 = np.percentile(values, (50, 95, 99))
                rows.append((name, size, label, p50, p95, p99))
                print(
                    f"| {name} | {size} | {label} | {p50:.3f} | {p95:.3f} | {p99:.3f} | {1e3 * size / p50:,.0f} | "
                    f"{p50 / base:.2f} |",
                    flush=True,
                )
    if args.plot:
        plot(rows, args.plot)


def plot(rows: Sequence[tuple[str, int, str, float, float, float]], path: str) -> None:
    """Draws one panel per model: milliseconds over batch size, with a line per contender and a band up to its p95."""
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(row[0] for row in rows))
    figure = Figure(figsize=(4 * len(names), 4), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, len(names), sharey=True))
    for axis, name in zip(axes, names, strict=True):
        for label in dict.fromkeys(row[2] for row in rows):
            sizes, p50, p95 = zip(
                *((size, p50, p95) for model, size, own, p50, p95, _ in rows if (model, own) == (name, label)),
                strict=True,
            )
            (line,) = axis.plot(sizes, p50, marker="o", markersize=3, label=label)
            axis.fill_between(sizes, p50, p95, color=line.get_color(), alpha=0.15, linewidth=0)
        axis.set(title=name, xlabel="batch size", xscale="log", yscale="log")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("milliseconds, one thread: median, and up to p95")
    axes[0].legend(frameon=False)
    figure.savefig(path, dpi=150)


def query_size(random: np.random.Generator) -> int:
    return int(np.clip(round(random.normal(MEAN_ITEMS, STD_ITEMS)), 1, MOST_ITEMS))


def p95_under_load(model: Model, pool: Sequence[Inputs], *, rate: float, duration_s: float, seed: int) -> float:
    """The p95 of milliseconds from arrival to answer for ``rate`` queries per second, in real time."""
    random, waiting = np.random.default_rng(seed), queue.Queue[Any]()
    arrivals = np.cumsum(random.exponential(1 / rate, size=max(int(rate * duration_s), 20)))
    answered: list[float] = []

    def work() -> None:
        with torch.inference_mode():
            while (query := waiting.get()) is not None:
                arrived, given = query
                model(*given)
                answered.append(1e3 * (time.perf_counter() - arrived))

    worker = threading.Thread(target=work)
    worker.start()
    begin = time.perf_counter()
    for number, arrival in enumerate(arrivals):
        time.sleep(max(begin + arrival - time.perf_counter(), 0))
        waiting.put((begin + arrival, pool[number % len(pool)]))
        if waiting.qsize() > 200:  # the queue only grows: the worker cannot keep up with this rate
            break
    waiting.put(None)
    worker.join()
    return float(np.percentile(answered, 95))


def highest_rate(model: Model, pool: Sequence[Inputs], duration_s: float) -> tuple[float, float]:
    """The highest rate of queries per second, to 4 %, with a p95 within the bound, and its p95; 0 if there is none."""
    with torch.inference_mode():
        service = statistics.median(seconds(model, given) for given in pool)
    low, high, p95_low = 0.0, 1.2 / service, 0.0
    while high > 1.04 * low and high > 0.02 / service:
        rate = (low + high) / 2
        p95 = p95_under_load(model, pool, rate=rate, duration_s=duration_s, seed=0)
        if p95 <= BOUND_MS:
            low, p95_low = rate, p95
        else:
            high = rate
    return low, p95_low


def load(args: argparse.Namespace) -> None:
    print("| model | contender | queries/s | items/s | p95 ms | of fp32 eager |\n|---|---|---|---|---|---|")
    random = np.random.default_rng(0)
    for name in args.models:
        spec, models = contenders(name, args.rows_share)
        pool = [Rows(spec).arguments(uniform_batch(spec, query_size(random))) for _ in range(64)]
        rates: dict[str, float] = {}
        for label in (EAGER, "int8 tables", FULL):
            rates[label], p95 = highest_rate(models[label], pool, args.seconds)
            ratio = f"{rates[label] / rates[EAGER]:.2f}" if rates[EAGER] else "-"
            print(
                f"| {name} | {label} | {rates[label]:.0f} | {rates[label] * MEAN_ITEMS:,.0f} | {p95:.1f} | {ratio} |",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(required=True)
    for verb in (latency, load):
        own = verbs.add_parser(verb.__name__)
        own.set_defaults(run=verb)
        own.add_argument("--models", nargs="+", default=["dlrm", "rmc1", "rmc2", "rmc3"])
        own.add_argument("--rows-share", type=float, default=0.1)
        if verb is latency:
            own.add_argument("--sizes", nargs="+", type=int, default=[1, 8, 32, 64, 128, 256, 512])
            own.add_argument("--rounds", type=int, default=60)
            own.add_argument("--plot", default="")
        else:
            own.add_argument("--seconds", type=float, default=4.0)
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    args.run(args)


if __name__ == "__main__":
    main()
