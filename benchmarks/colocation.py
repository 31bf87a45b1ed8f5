"""How much processes that serve a model slow each other: lookups (RMC2) against MLPs (RMC3), in fp32, fp16 and int8.

    OMP_NUM_THREADS=1 python benchmarks/colocation.py                       # 3 GB of memory, two minutes
    OMP_NUM_THREADS=1 python benchmarks/colocation.py --shapes rmc1 --forms int8 --rounds 9

Each process has a model of its own and one thread, which is pinned to a core. The first one runs alone, then beside
others: 2, 3 and 4 processes on cores of their own, as far as there are such cores, then two on one core and, with fewer
than four cores, four over all of them. All placements take turns within a round, and ratios are medians over rounds,
each against the same round alone, with the smallest and the largest. "latency" is the median of the first process's
batches. "core time" is what its thread had of the core for a batch: processes that only take turns on a core leave it
as it is, those that push rows out of caches or keep memory busy raise it, and other work on the machine hardly does.
"throughput" is that of all processes. fp32, fp16 and int8 are the tables; with int8, MLPs are int8, too. The tables
have ``--rows-share`` of the published rows.

Exits with 1 unless a process gives the same answers beside others as alone.
"""

from __future__ import annotations

import argparse
import copy
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.multiprocessing as multiprocessing
from torch import nn

from dlrm_torchrec.datasets.synthetic.uniform import uniform_batch
from dlrm_torchrec.inference.config import TableType
from dlrm_torchrec.inference.forms.labels import Rows
from dlrm_torchrec.inference.mlps.quantize import quantize_mlps
from dlrm_torchrec.inference.scoring import Scorer, script
from dlrm_torchrec.inference.tables.serve import serve_tables, table_weights
from dlrm_torchrec.recipe import load_training_recipe
from dlrm_torchrec.schema import DatasetSpec

FORMS: tuple[TableType, ...] = ("fp32", "fp16", "int8")
POOL = 16  # batches that a process answers in turn
Inputs = tuple[Any, ...]  # of a program
Placement = tuple[int, ...]  # the core of each process


class Answers(NamedTuple):
    """What a process did in its time."""

    seconds: list[float]  # of each batch, by the clock
    core_seconds: list[float]  # of each batch, as the thread had the core
    checksum: float  # of its logits for the first batch


def programs(shape: str, forms: Sequence[TableType], rows_share: float, folder: Path) -> DatasetSpec:
    """Saves the program of each form in ``folder``; the spec of its inputs."""
    recipe = load_training_recipe("train_rmc")
    cfg = recipe.PRESETS[shape]
    sparse = tuple(replace(each, rows=max(1, int(each.rows * rows_share))) for each in cfg.shape.sparse)
    spec = replace(cfg.shape, sparse=sparse)
    task, tables = recipe.build(cfg, spec, 1, torch.device("cpu"))
    tables.to_empty(device="cpu")
    weights, features = table_weights(tables), [feature.name for feature in sparse]
    with torch.no_grad():
        for weight in weights.values():
            nn.init.normal_(weight, std=0.05)
    for form in forms:
        own = copy.deepcopy(task.model.eval(), {id(tables): tables})  # copies everything except the tables
        served = serve_tables(own, tables, dict.fromkeys(weights, form), features)
        if form == "int8":
            served = quantize_mlps(served, "static", [Rows(spec).inputs(uniform_batch(spec, 1024))])
        torch.jit.save(script(Scorer(served, spec)), folder / form)
    return spec


@torch.inference_mode()
def serve(orders: Connection) -> None:
    """One process: answers each order, the arguments of ``Server.load`` or of ``Server.run``; ends at None."""
    torch.set_num_threads(1)
    server = Server()
    while (order := orders.recv()) is not None:
        name, *given = order
        orders.send(getattr(server, name)(*given))


class Server:
    """A model and the batches that it answers."""

    model: Any
    pool: list[Inputs]

    def load(self, path: str, spec: DatasetSpec, batch: int) -> None:
        torch.manual_seed(0)
        self.model = torch.jit.load(path)
        self.pool = [Rows(spec).arguments(uniform_batch(spec, batch)) for _ in range(POOL)]
        for _ in range(3):
            self.model(*self.pool[0])  # TorchScript compiles in its first calls

    def run(self, core: int, duration_s: float) -> Answers:
        os.sched_setaffinity(0, {core})
        seconds, core_seconds, end = list[float](), list[float](), time.perf_counter() + duration_s
        while time.perf_counter() < end or not seconds:
            given = self.pool[len(seconds) % POOL]
            start, core_start = time.perf_counter(), time.thread_time()
            self.model(*given)
            seconds.append(time.perf_counter() - start)
            core_seconds.append(time.thread_time() - core_start)
        (logits, *_) = self.model(*self.pool[0])
        return Answers(seconds, core_seconds, float(logits.double().sum()))


@contextmanager
def servers(number: int) -> Iterator[list[Connection]]:
    """So many processes, by what they get their orders through."""
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe() for _ in range(number)]
    workers = [context.Process(target=serve, args=(own,)) for _, own in pipes]
    try:
        for worker, (_, own) in zip(workers, pipes, strict=True):
            worker.start()
            own.close()  # so that the end of a process ends what we wait for
        yield [pipe for pipe, _ in pipes]
    finally:
        for pipe, _ in pipes:
            with suppress(OSError):  # of a process that has ended
                pipe.send(None)
        for worker in workers:
            worker.join(20)
            worker.kill()


def placements(cores: Sequence[int]) -> list[Placement]:
    """Where processes run: alone first, then on cores of their own, then sharing cores.

    >>> placements([0, 1])
    [(0,), (0, 1), (0, 0), (0, 1, 0, 1)]
    """
    found = [tuple(cores[:number]) for number in range(1, min(4, len(cores)) + 1)]
    found.append((cores[0], cores[0]))
    if 1 < len(cores) < 4:
        found.append(tuple(cores[number % len(cores)] for number in range(4)))
    return found


class Ratios(NamedTuple):
    """Of one placement in one round, to the first process alone in that round."""

    latency: float
    core_time: float
    throughput: float


def compared(answers: list[Answers], alone: Answers, duration_s: float) -> Ratios:
    first = answers[0]
    per_second = sum(len(each.seconds) / max(duration_s, sum(each.seconds)) for each in answers)
    alone_per_second = len(alone.seconds) / max(duration_s, sum(alone.seconds))
    return Ratios(
        median(first.seconds) / median(alone.seconds),
        median(first.core_seconds) / median(alone.core_seconds),
        per_second / alone_per_second,
    )


def measure(
    path: Path, spec: DatasetSpec, pipes: list[Connection], args: argparse.Namespace
) -> tuple[float, dict[Placement, list[Ratios]]]:
    """Milliseconds of a batch alone, and the ratios of every round. Raises ValueError when an answer changes."""
    for pipe in pipes:
        pipe.send(("load", str(path), spec, args.batch))
    for pipe in pipes:
        pipe.recv()
    found: dict[Placement, list[Ratios]] = {placement: [] for placement in args.placements}
    alone_ms, checksums = list[float](), set[float]()
    for _ in range(args.rounds):
        for placement, ratios in found.items():
            for pipe, core in zip(pipes, placement, strict=False):
                pipe.send(("run", core, args.seconds))
            answers: list[Answers] = [pipe.recv() for pipe in pipes[: len(placement)]]
            if len(placement) == 1:
                (alone,) = answers
                alone_ms.append(1e3 * median(alone.seconds))
            ratios.append(compared(answers, alone, args.seconds))
            checksums |= {each.checksum for each in answers}
    if len(checksums) != 1:
        raise ValueError(f"answers beside others must be those alone: got sums {sorted(checksums)} for {path.name}")
    return median(alone_ms), found


def spread(values: Sequence[float]) -> str:
    return f"{np.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=["rmc1", "rmc2", "rmc3"], default=["rmc2", "rmc3"])
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    parser.add_argument("--rows-share", type=float, default=0.1, help="share of the published rows")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=0.5, help="time of one placement in one round")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.manual_seed(0)
    args.placements = placements(sorted(os.sched_getaffinity(0)))
    heads = ["model", "form", "processes", "cores", "ms alone", "latency", "core time", "throughput"]
    print(f"{len(os.sched_getaffinity(0))} cores\n| {' | '.join(heads)} |\n{'|---' * len(heads)}|", flush=True)
    with servers(max(map(len, args.placements))) as pipes:
        for shape in args.shapes:
            with tempfile.TemporaryDirectory() as folder:
                spec = programs(shape, args.forms, args.rows_share, Path(folder))
                for form in args.forms:
                    try:
                        alone_ms, found = measure(Path(folder, form), spec, pipes, args)
                    except ValueError as error:
                        sys.exit(f"error: {error}")
                    for placement, ratios in list(found.items())[1:]:
                        cells = [shape, form, str(len(placement)), str(len(set(placement))), f"{alone_ms:.2f}"]
                        cells += [spread(own) for own in zip(*ratios, strict=True)]
                        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
