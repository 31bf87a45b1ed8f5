"""What a well-behaved client of a server notices of attackers beside it: its errors, p50, p99 and worst latency.

    python benchmarks/inference_attacks.py runs/train_dlrm/demo/package --seconds 60

serves the package with the default limits. One client asks for a row at a time, over one connection, and connects again
after an error. Beside it, attackers in a process of their own send the worst requests that are known, each kind for an
equal share of the time: JSON and Arrow bodies of 7.9 MB that take long to read, bodies in tiny pieces, connections
that stay silent, and reloads that a page of another site asks for. The first line is the client without attackers.
"""

from __future__ import annotations

import argparse
import http.client
import json
import multiprocessing
import re
import socket
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

JSON, ARROW = "application/json", "application/vnd.apache.arrow.stream"
PAUSE_S = 0.005  # between the requests of the client
ATTACKERS = 2  # connections that send large bodies
SILENT = 600  # connections that say nothing; more than a server of default limits takes

Attack = Callable[[int], Any]  # makes one turn of an attack on a port


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path, help="folder of the package to serve")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long the attacks take together")
    args = parser.parse_args()
    spec = json.loads((args.package / "package.json").read_text())["spec"]
    command = [sys.executable, "-m", "dlrm_torchrec.cli.main", "serve", str(args.package), "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert server.stdout is not None
    assert server.stderr is not None
    try:
        port = int(re.findall(r":(\d+)$", server.stdout.readline().strip())[0])
        attacks = attacks_on(spec)
        share = args.seconds / len(attacks)
        body = json.dumps({"columns": row(spec, 1)}).encode()
        print("attack | requests | errors | p50 ms | p99 ms | worst ms | attackers' answers")
        everything: list[float] = []
        failed = 0
        for name, attack in [("none", None), *attacks.items()]:
            answers: Any = multiprocessing.Queue()
            attackers = [
                multiprocessing.Process(target=repeat, args=(attack, port, answers), daemon=True)
                for _ in range(ATTACKERS if attack else 0)
            ]
            for attacker in attackers:
                attacker.start()
            time.sleep(1.0 if attack else 0.0)  # until they have begun
            latencies, errors = ask(port, body, share)
            for attacker in attackers:
                attacker.kill()
            seen = Counter(drained(answers))
            print(" | ".join([name, *summary(latencies, errors), str(dict(seen))]), flush=True)
            if attack:
                everything += latencies
                failed += errors
        print(" | ".join(["all attacks", *summary(everything, failed), ""]))
    finally:
        server.terminate()
        _, log = server.communicate(timeout=60)
        print(json.dumps({"exit_code": server.returncode, "log_bytes": len(log)}))


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
    names = [name for each in features for name in (each["column"] or each["name"], each.get("weights")) if name]
    return {name: [None] * num_rows for name in dict.fromkeys(names)}


def attacks_on(spec: dict[str, Any]) -> dict[str, Attack]:
    """The attacks by name."""
    hashed = next((each for each in spec["sparse"] if each["encoding"] == "hash"), spec["sparse"][0])
    column = hashed["column"] or hashed["name"]

    def texts(count: int, size: int) -> bytes:
        listed = [["a" * size]] if hashed["multi_hot"] else ["a" * size]
        return json.dumps({"columns": {**row(spec, count), column: listed * count}}).encode()

    many = pa.table({f"c{i}": pa.array([1], pa.int8()) for i in range(30_000)})
    one = pa.table({name: pa.nulls(1) for name in row(spec, 1)})
    bodies = {
        "JSON: 2.6 million []": (JSON, b'{"rows":[' + b",".join([b"[]"] * 2_600_000) + b"]}"),
        "JSON: 99,000 []": (JSON, b'{"rows":[' + b",".join([b"[]"] * 99_000) + b"]}"),
        "JSON: 66,000 keys": (JSON, b'{"rows":[{' + b",".join(b'"%d":1' % i for i in range(66_000)) + b"}]}"),
        "JSON: 190,000 long numbers": (
            JSON,
            b'{"rows":[' + b",".join([b"0.1234567890123456789012345678"] * 190_000) + b"]}",
        ),
        "JSON: 200 levels": (JSON, b'{"rows":[' + b",".join([b"[" * 200 + b"]" * 200] * 19_000) + b"]}"),
        "JSON: 33 texts of 230 kB": (JSON, texts(33, 230_000)),
        "JSON: 1,900 texts of 4 kB": (JSON, texts(1900, 4000)),
        "JSON: integers of 4,300 digits": (JSON, b'{"rows":[' + b",".join([b"9" * 4300] * 1800) + b"]}"),
        "JSON: integers of 640 digits": (JSON, b'{"rows":[' + b",".join([b"9" * 640] * 12_000) + b"]}"),
        "JSON: escapes": (JSON, b'{"rows":["' + rb"\\" * 3_900_000 + b'"]}'),
        "Arrow: 30,000 columns": (ARROW, stream([many])),
        "Arrow: 4,000 batches": (ARROW, stream([one] * 4000)),
    }
    posts = {name: partial(post, content_type=kind, body=body) for name, (kind, body) in bodies.items()}
    return {**posts, "body in tiny pieces": tiny_pieces, "silent connections": silent, "foreign reload": reload}


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


def post(port: int, content_type: str, body: bytes) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", "/predict", body, {"Content-Type": content_type})
    status = connection.getresponse().status
    connection.close()
    return status


def tiny_pieces(port: int) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
        with suppress(ConnectionError):
            client.sendall(
                b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\n \r\n" * 200_000
            )
        return client.recv(16)[9:12]


def silent(port: int) -> str:
    """Opens connections that begin a request and say no more."""
    held = []
    for _ in range(SILENT):
        client = socket.create_connection(("127.0.0.1", port), timeout=10)
        held.append(client)
        with suppress(OSError):
            client.sendall(
                b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n"
            )
    time.sleep(2)
    for client in held:
        client.close()
    return "held"


def reload(port: int) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", "/reload", headers={"Origin": "http://evil.example", "Host": "evil.example"})
    status = connection.getresponse().status
    connection.close()
    return status


def drained(answers: Any) -> Iterator[Any]:
    while not answers.empty():
        yield answers.get()


if __name__ == "__main__":
    main()
