"""What a day's delta costs: its bytes against a full package, and the seconds and latencies while a server applies it.

    python benchmarks/deltas.py --folder /tmp/deltas              # 1 GB of served tables; needs 8 GiB and 3 GB of disk

The tables are those of the demo with as many times more rows as make ``--gigabytes`` of int8 rows. A day changes all
dense parameters and ``--touched`` of the rows of every table. Then a server in its own process serves the day before,
``--clients`` clients ask for 10 rows at a time, and the delta is applied and taken back ``--rounds`` times. Latencies
are those of requests that overlap with an application, and those of the same clients before. All share the machine.

Then the same parts of a server run in this process without clients, and a task of its event loop looks every
millisecond how long it had to wait while a delta was applied. A wait counts as long as it lasted, or as much processor
time as this process took meanwhile, whichever is less, because another process may have the core.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import http.client
import json
import re
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torchrec.models.dlrm import DLRM

from dlrm_torchrec.datasets.synthetic.specs import demo_spec
from dlrm_torchrec.embeddings.tables import build_tables
from dlrm_torchrec.inference.deltas.offline import make_delta
from dlrm_torchrec.inference.package import write_package
from dlrm_torchrec.inference.scoring import Scorer, script
from dlrm_torchrec.inference.serving.batcher import Batcher
from dlrm_torchrec.inference.serving.models import Models
from dlrm_torchrec.inference.serving.prometheus import Metrics
from dlrm_torchrec.inference.serving.server import SWITCH_S
from dlrm_torchrec.inference.tables.serve import serve_tables, table_weights
from dlrm_torchrec.schema import DatasetSpec

DIM, ROW_BYTES, ROWS, PAUSE_S, LOOK_S = 16, 20, 10, 0.004, 0.001


class Asked(NamedTuple):
    """When a request was sent and answered."""

    start: float
    end: float


def spec_of(gigabytes: float) -> DatasetSpec:
    spec = demo_spec()
    times = gigabytes * 1e9 / ROW_BYTES / sum(feature.rows for feature in spec.sparse)
    sparse = tuple(replace(feature, rows=int(feature.rows * times)) for feature in spec.sparse)
    return replace(spec, sparse=sparse)


def write_days(folder: Path, spec: DatasetSpec, touched: float) -> None:
    """The packages of two days."""
    torch.manual_seed(0)
    weights = {table.name: torch.randn(table.rows, DIM) for table in spec.tables(DIM)}
    for day in ("yesterday", "today"):
        tables = build_tables(spec.tables(DIM))
        model: nn.Module = DLRM(tables, len(spec.dense), [64, DIM], [64, 32, 1]).eval()
        tables.to_empty(device="cpu")
        for table, weight in zip(spec.tables(DIM), table_weights(tables).values(), strict=True):
            weight.data = weights[table.name]
        types = dict.fromkeys(table_weights(tables), "int8")
        served = serve_tables(model, tables, types, [feature.name for feature in spec.sparse])  # type: ignore[arg-type]
        program = script(Scorer(served, spec))
        write_package(folder / day, program, spec, vocabularies={}, model_facts={}, metrics={})
        for weight in weights.values():
            rows = torch.randperm(len(weight))[: round(touched * len(weight))]
            weight[rows] = torch.randn(len(rows), DIM)


def start(package: Path, token: Path) -> tuple[subprocess.Popen[str], int]:
    command = [sys.executable, "-m", "dlrm_torchrec.cli.main", "serve", str(package), "--port", "0"]
    process = subprocess.Popen([*command, "--reload-token-file", str(token)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    found = re.search(r":(\d+)$", process.stdout.readline())
    assert found
    return process, int(found[1])


def ask(port: int, path: str, body: Any, token: str) -> float:
    """Seconds of a request that changes the server's version."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    begin = time.perf_counter()
    connection.request("POST", path, json.dumps(body), {"Authorization": f"Bearer {token}"})
    answer = connection.getresponse()
    assert answer.status == 200, answer.read()
    return time.perf_counter() - begin


def client(port: int, bodies: list[bytes], going: list[bool], asked: list[Asked]) -> None:
    connection, number = http.client.HTTPConnection("127.0.0.1", port, timeout=60), 0
    while going:
        begin, number = time.perf_counter(), number + 1
        connection.request("POST", "/predict", bodies[number % len(bodies)], {"Content-Type": "application/json"})
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 200
        asked.append(Asked(begin, time.perf_counter()))
        time.sleep(PAUSE_S)


def bodies_of(spec: DatasetSpec) -> list[bytes]:
    random = np.random.default_rng(0)

    def column(rows: int, *, listed: bool) -> list[Any]:
        ids = random.integers(rows, size=ROWS).tolist()
        return [[each] for each in ids] if listed else ids

    return [
        json.dumps(
            {
                "columns": {feature.name: random.normal(size=ROWS).tolist() for feature in spec.dense}
                | {feature.name: column(feature.rows, listed=feature.multi_hot) for feature in spec.sparse}
            }
        ).encode()
        for _ in range(64)
    ]


async def longest_waits(package: Path, delta: Path, rounds: int) -> dict[str, list[float]]:
    """The longest wait of an event loop in each round, in seconds, by what was done meanwhile."""
    metrics, waits = Metrics(lambda: 0), list[float]()
    batcher = Batcher(metrics, max_batch_rows=1024, max_delay_s=0, threads=1)
    models = Models(package, batcher, metrics)

    async def look() -> None:
        while True:
            begin, used = time.perf_counter(), time.process_time()
            await asyncio.sleep(LOOK_S)
            waits.append(min(time.perf_counter() - begin - LOOK_S, time.process_time() - used))

    tasks = [asyncio.create_task(each) for each in (batcher.run(), look())]
    await models.load()
    gc.collect()
    gc.freeze()  # as the server does
    longest: dict[str, list[float]] = {"nothing": [], "a delta": [], "a rollback": []}
    await asyncio.sleep(0.5)  # or the first wait would be that for the garbage collection
    for _ in range(rounds):
        changes = {"nothing": asyncio.sleep(0.5), "a delta": models.apply(delta), "a rollback": models.roll_back()}
        for name, change in changes.items():
            waits.clear()
            await change
            await asyncio.sleep(2 * LOOK_S)
            longest[name].append(max(waits))
    for task in tasks:
        task.cancel()
    return longest


def told(name: str, requests: list[Asked]) -> str:
    p50, p99, most = np.quantile([1e3 * (each.end - each.start) for each in requests], [0.5, 0.99, 1])
    return f"{name}: {len(requests):,} requests, p50 {p50:.1f}, p99 {p99:.1f}, worst {most:.1f} ms"


def size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="new folder for the packages and the delta")
    parser.add_argument("--gigabytes", type=float, default=1.0, help="bytes of the served tables in 10^9")
    parser.add_argument("--touched", type=float, default=0.05, help="share of the rows that a day changes")
    parser.add_argument("--clients", type=int, default=2, help="number of clients that ask one after the other")
    parser.add_argument("--rounds", type=int, default=20, help="how often the delta is applied")
    args = parser.parse_args()
    spec = spec_of(args.gigabytes)
    if not (args.folder / "today").exists():
        write_days(args.folder, spec, args.touched)
    begin = time.perf_counter()
    make_delta(args.folder / "yesterday", args.folder / "today", args.folder / "delta")
    print(f"delta made in {time.perf_counter() - begin:.2f} s, of which comparing is a part")
    full, delta = size(args.folder / "today"), size(args.folder / "delta")
    print(f"full package {full:,} bytes, delta {delta:,} bytes: {delta / full:.2%}")

    token = args.folder / "token"
    token.write_text("0123456789abcdef")
    process, port = start(args.folder / "yesterday", token)
    going, asked = [True], list[Asked]()
    bodies = bodies_of(spec)
    clients = [threading.Thread(target=client, args=(port, bodies, going, asked)) for _ in range(args.clients)]
    for each in clients:
        each.start()
    time.sleep(15)
    before, times, spans = len(asked), {"/delta": list[float](), "/rollback": list[float]()}, list[Asked]()
    for _ in range(args.rounds):
        for path, seconds in times.items():
            begin = time.perf_counter()
            seconds.append(ask(port, path, {"path": str((args.folder / "delta").absolute())}, token.read_text()))
            if path == "/delta":
                spans.append(Asked(begin, time.perf_counter()))
            time.sleep(0.2)
    going.clear()
    for each in clients:
        each.join()
    process.terminate()
    process.wait()
    for path, seconds in times.items():
        print(f"{path}: median {np.median(seconds):.3f} s, longest {max(seconds):.3f} s")
    meanwhile = [each for each in asked if any(each.start < span.end and each.end > span.start for span in spans)]
    print(told("before", asked[before // 3 : before]))
    print(told("while a delta is applied", meanwhile))

    sys.setswitchinterval(SWITCH_S)
    for name, waits in asyncio.run(
        longest_waits(args.folder / "yesterday", args.folder / "delta", args.rounds)
    ).items():
        print(
            f"longest wait of the event loop during {name}: median {1e3 * float(np.median(waits)):.1f}, worst of "
            f"{len(waits)} {1e3 * max(waits):.1f} ms"
        )


if __name__ == "__main__":
    main()
