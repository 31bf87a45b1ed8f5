"""What a well-behaved client of a server notices of attackers beside it: its errors, p50, p99 and worst latency.

    python benchmarks/inference_attacks.py runs/train_dlrm/demo/package --seconds 60
    python benchmarks/inference_attacks.py runs/train_dlrm/demo/package --each 3
    python benchmarks/inference_attacks.py runs/train_dlrm/demo/package --pauses

The first command serves the package with the default limits. One client asks for a row at a time, over one connection,
and connects again after an error: first without attackers, then for a minute beside five of them, in processes of their
own. Two draw their next attack at random: bodies that take long to read, bodies in tiny pieces, encoded bodies, long
heads, pipelined and half-closed requests, reloads for a page of another site. One holds connections that stay silent,
one sends bodies byte by byte, and one opens and closes connections. ``--each`` makes one kind of attack at a time.
``--pauses`` serves nothing: it reads the worst bodies as a server does, and measures for how long no other thread of
the process, such as that of the event loop, could go on; the least of five turns, since other work on the machine adds.
"""

from __future__ import annotations

import argparse
import gc
import gzip
import http.client
import json
import multiprocessing
import random
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
from starlette.exceptions import HTTPException

JSON, ARROW = "application/json", "application/vnd.apache.arrow.stream"
PAUSE_S = 0.005  # between the requests of the client
ATTACKERS = 2  # that draw their attacks
SILENT = 600  # connections that say nothing; more than a server of default limits takes

CHUNKED = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"

Attack = Callable[[int], Any]  # makes one turn of an attack on a port
T = TypeVar("T")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path, nargs="?", default=Path("runs/train_dlrm/demo/package"), help="to serve")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long all attacks together take")
    parser.add_argument("--each", type=float, default=0.0, help="seconds of each attack alone; 0 means together")
    parser.add_argument("--pauses", action="store_true", help="measure how long each body makes other threads wait")
    args = parser.parse_args()
    spec = json.loads((args.package / "package.json").read_text())["spec"]
    if args.pauses:
        print_pauses(args.package, bodies_on(spec))
        return
    attacks = attacks_on(spec)
    together = [partial(any_of, random.Random(seed), list(attacks.values())) for seed in range(ATTACKERS)]
    turns: dict[str, list[Attack]] = {"none": []}
    if args.each:
        turns |= {name: [attack] * ATTACKERS for name, attack in (attacks | ON_CONNECTIONS).items()}
    else:
        turns["all together"] = [*together, *ON_CONNECTIONS.values()]
    body = json.dumps({"columns": row(spec, 1)}).encode()
    command = [sys.executable, "-m", "dlrm_torchrec.cli.main", "serve", str(args.package), "--port", "0"]
    with tempfile.TemporaryFile() as log, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log) as server:
        assert server.stdout is not None
        port = int(re.findall(rb":(\d+)$", server.stdout.readline().strip())[0])
        print("attack | requests | errors | p50 ms | p99 ms | worst ms | event loop | attackers' answers")
        for name, attackers in turns.items():
            busy = loop_seconds(server.pid)
            (latencies, errors), answers = beside(attackers, port, lambda: ask(port, body, args.each or args.seconds))
            share = (loop_seconds(server.pid) - busy) / (args.each or args.seconds)
            print(" | ".join([name, *summary(latencies, errors), f"{share:.0%} busy", str(dict(answers))]), flush=True)
        server.terminate()
        print(json.dumps({"exit_code": server.wait(timeout=60), "log_bytes": log.seek(0, 2)}))


def beside(attackers: list[Attack], port: int, work: Callable[[], T]) -> tuple[T, Counter[str]]:
    """The result of ``work`` while each attacker attacks in a process of its own, and what they were answered."""
    answers: Any = multiprocessing.Queue()
    processes = [multiprocessing.Process(target=repeat, args=(each, port, answers), daemon=True) for each in attackers]
    for process in processes:
        process.start()
    if processes:
        time.sleep(1)  # until they have begun
    result = work()
    for process in processes:
        process.kill()
    return result, Counter(map(str, drained(answers)))


def loop_seconds(process: int) -> float:
    """The processor's time that the main thread of a process has had, which runs the event loop."""
    return int(Path(f"/proc/{process}/task/{process}/schedstat").read_text().split()[0]) / 1e9


def print_pauses(package: Path, bodies: dict[str, tuple[str, bytes]]) -> None:
    from dlrm_torchrec.inference.predictor import Predictor
    from dlrm_torchrec.inference.serving.app import Service
    from dlrm_torchrec.inference.serving.limits import ServingConfig
    from dlrm_torchrec.inference.serving.server import SWITCH_S

    sys.setswitchinterval(SWITCH_S)
    service, predictor = Service(package, ServingConfig()), Predictor.load(package)
    gc.collect()
    gc.freeze()

    def read(kind: str, body: bytes, used: list[float]) -> None:
        start = time.thread_time()
        with suppress(HTTPException):
            service.encoded(predictor, kind, body)  # what a server does with a body
        used.append(time.thread_time() - start)

    print("body | MB | ms of one core | longest pause of another thread, ms")
    for name, (kind, body) in bodies.items():
        pauses: list[float] = []
        used: list[float] = []
        for _ in range(5):
            reader = threading.Thread(target=read, args=(kind, body, used))
            last, pause = time.perf_counter(), 0.0
            reader.start()
            while reader.is_alive():
                time.sleep(2e-4)
                now = time.perf_counter()
                last, pause = now, max(pause, now - last)
            pauses.append(pause)
        print(f"{name} | {len(body) / 1e6:.1f} | {1e3 * min(used):.1f} | {1e3 * min(pauses):.1f}", flush=True)


def summary(latencies: list[float], errors: int) -> list[str]:
    ordered = sorted(latencies)
    p99 = ordered[int(0.99 * (len(ordered) - 1))]
    return [f"{len(ordered)}", f"{errors}", *(f"{1e3 * x:.1f}" for x in (statistics.median(ordered), p99, ordered[-1]))]


def ask(port: int, body: bytes, seconds: float) -> tuple[list[float], int]:
    """The seconds of each request, and how many were not answered with 200."""
    latencies, errors, connection = [], 0, None
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        try:
            connection = connection or http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            connection.request("POST", "/predict", body, {"Content-Type": JSON})
            response = connection.getresponse()
            response.read()
            errors += response.status != 200
        except (OSError, http.client.HTTPException):
            errors, connection = errors + 1, None
        latencies.append(time.perf_counter() - start)
        time.sleep(PAUSE_S)
    return latencies, errors


def row(spec: dict[str, Any], num_rows: int) -> dict[str, Any]:
    """Missing values for all columns."""
    features = [*spec["dense"], *spec["sparse"]]
    names = [name for each in features for name in (each.get("column") or each["name"], each.get("weights")) if name]
    return {name: [None] * num_rows for name in dict.fromkeys(names)}


def bodies_on(spec: dict[str, Any]) -> dict[str, tuple[str, bytes]]:
    """Bodies that take a server long to read or to refuse, by name, with their content types."""
    hashed = next((each for each in spec["sparse"] if each["encoding"] == "hash"), spec["sparse"][0])
    column, is_list = hashed.get("column") or hashed["name"], hashed["multi_hot"]
    null = json.dumps(None)

    def values(*listed: str) -> bytes:
        """A document that has these values in one column, in one row if that is a column of lists."""
        num_rows = 1 if is_list else len(listed)
        others = {name: f"[{','.join([null] * num_rows)}]" for name in row(spec, 1)}
        own = f"[{','.join(listed)}]"
        columns = others | {column: f"[{own}]" if is_list else own}
        return f'{{"columns":{{{",".join(f"{json.dumps(name)}:{text}" for name, text in columns.items())}}}}}'.encode()

    def rows(element: str, count: int) -> bytes:
        return f'{{"rows":[{",".join([element] * count)}]}}'.encode()

    def lists(array: pa.Array) -> bytes:
        own = pa.ListArray.from_arrays([0, len(array)], array) if is_list else array[:4096]
        return stream([pa.table({name: pa.nulls(len(own)) for name in row(spec, 1)} | {column: own})])

    many = pa.table({f"c{i}": pa.array([1], pa.int8()) for i in range(30_000)})
    one = pa.table({name: pa.nulls(1) for name in row(spec, 1)})
    documents = {
        "JSON: 2.6 million []": rows("[]", 2_600_000),
        "JSON: 99,000 []": rows("[]", 99_000),
        "JSON: 66,000 keys": json.dumps({"rows": [{str(i): 1 for i in range(66_000)}]}).encode(),
        "JSON: 190,000 long numbers": rows("0.1234567890123456789012345678", 190_000),
        "JSON: 200 levels": rows("[" * 200 + "]" * 200, 19_000),
        "JSON: 33 texts of 230 kB": values(*[f'"{"a" * 230_000}"'] * 33),
        "JSON: 1,900 texts of 4 kB": values(*[f'"{"a" * 4000}"'] * 1900),
        "JSON: 1,900 texts of 2,000 escapes": values(*[f'"{chr(92) * 4000}"'] * 1900),
        "JSON: 190,000 texts of 38 digits": values(*(f'"{i:038}"' for i in range(190_000))),
        "JSON: 190,000 fractions of 39 digits": values(*(f"0.{i:038}1" for i in range(185_000))),
        "JSON: integers of 4,300 digits": rows("9" * 4300, 1800),
        "JSON: integers of 640 digits": values(*["9" * 640] * 12_000),
        "JSON: integers of 60 digits": values(*["9" * 60] * 120_000),
        "JSON: values of five types": values(*["1", '"a"', "2.0", "true", "null"] * 38_000),
        "JSON: one text of escapes": rows(f'"{chr(92) * 7_800_000}"', 1),
    }
    streams = {
        "Arrow: 30,000 columns": stream([many]),
        "Arrow: 4,000 batches": stream([one] * 4000),
        "Arrow: 600,000 short texts": lists(pa.array([f"a{i % 10_000}" for i in range(600_000)])),
        "Arrow: 980,000 times": lists(pa.array(range(980_000), pa.int64()).cast(pa.timestamp("s"))),
        "Arrow: a batch cut short": stream([one])[:-40],
    }
    named = {name: (JSON, body) for name, body in documents.items()}
    return named | {name: (ARROW, body) for name, body in streams.items()}


def attacks_on(spec: dict[str, Any]) -> dict[str, Attack]:
    """The attacks by name, apart from those on the number of connections."""
    posts = {
        name: partial(post, headers={"Content-Type": kind}, body=body) for name, (kind, body) in bodies_on(spec).items()
    }
    whole = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
    gzip_members = gzip.compress(b"") * 100_000
    encoded = {"Content-Type": JSON, "Content-Encoding": "gzip"}
    return posts | {
        "gzip: 100,000 empty members": partial(post, headers=encoded, body=gzip_members),
        "body in tiny pieces": partial(send, data=CHUNKED + b"1\r\n \r\n" * 200_000),
        "head of 9 MB": partial(send, data=b"GET /healthz HTTP/1.1\r\n" + b"X-%b: a\r\n" % (b"a" * 1000) * 9000),
        "2,000 pipelined requests": partial(send, data=whole * 2000),
        "half-closed connection": partial(send, data=whole[:-1], half_close=True),
        "2,000 pipelined, half-closed": partial(send, data=whole * 2000, half_close=True),
        "foreign reload": partial(post, path="/reload", headers={"Origin": "http://evil.example", "Host": "evil"}),
    }


def stream(tables: list[pa.Table]) -> bytes:
    output = pa.BufferOutputStream()
    with pa.ipc.new_stream(output, tables[0].schema) as writer:
        for table in tables:
            writer.write_table(table)
    return bytes(output.getvalue())


def repeat(attack: Attack, port: int, answers: Any) -> None:
    while True:
        try:
            answers.put(attack(port))
        except (OSError, http.client.HTTPException) as error:
            answers.put(type(error).__name__)


def any_of(draw: random.Random, attacks: list[Attack], port: int) -> Any:
    return draw.choice(attacks)(port)


def post(port: int, *, path: str = "/predict", headers: dict[str, str], body: bytes = b"") -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", path, body, headers)
    status = connection.getresponse().status
    connection.close()
    return status


def send(port: int, *, data: bytes, half_close: bool = False) -> str:
    """Sends these bytes, closes this side of the connection if told, and reads the first answer."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
        with suppress(ConnectionError):
            client.sendall(data)
        if half_close:
            client.shutdown(socket.SHUT_WR)
        return client.recv(16)[9:12].decode() or "closed"


def flood(port: int) -> str:
    """Opens and closes connections."""
    for _ in range(SILENT):
        socket.create_connection(("127.0.0.1", port), timeout=10).close()
    return "flooded"


def held(port: int) -> Iterator[list[socket.socket]]:
    """Connections that have begun a request."""
    sockets = []
    for _ in range(SILENT):
        client = socket.create_connection(("127.0.0.1", port), timeout=10)
        sockets.append(client)
        with suppress(OSError):
            client.sendall(CHUNKED + b"1\r\n{\r\n")
    yield sockets
    for client in sockets:
        client.close()


def silent(port: int) -> str:
    for _ in held(port):
        time.sleep(2)
    return "silent"


def slow(port: int) -> str:
    for sockets in held(port):
        for _ in range(20):
            for client in sockets:
                with suppress(OSError):
                    client.sendall(b"1\r\n \r\n")
            time.sleep(0.1)
    return "slow"


ON_CONNECTIONS: dict[str, Attack] = {"silent connections": silent, "slow bodies": slow, "flood of connections": flood}


def drained(answers: Any) -> Iterator[Any]:
    while not answers.empty():
        yield answers.get()


if __name__ == "__main__":
    main()
