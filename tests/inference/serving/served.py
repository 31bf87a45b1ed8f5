"""A package, the process of a server that serves it, and what a client says to it."""

import http.client
import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from dlrm_torchrec.inference.package import write_package
from dlrm_torchrec.schema import DatasetSpec, DenseFeature, SparseFeature
from tests.inference.packages import Sum

JSON, ARROW = "application/json", "application/vnd.apache.arrow.stream"
CITIES = ["Kraków", "Paris", "Oslo", "Rome"]


class Difference(torch.nn.Module):
    """The difference of two dense values plus a number per id; dense values are multiplied by 4 to overflow."""

    weights: torch.Tensor

    def __init__(self, rows: list[int]) -> None:
        super().__init__()
        self.sum = Sum(rows)
        self.register_buffer("weights", torch.tensor([4.0, -4.0]))

    def forward(
        self, dense: torch.Tensor, ids: torch.Tensor, lengths: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return self.sum(dense * self.weights, ids, lengths)


def write(path: Path, name: str, cities: Sequence[str]) -> Path:
    """A package whose ids of cities are in the order of ``cities``, so that two packages differ."""
    spec = DatasetSpec(
        name=name,
        label="clicked",
        dense=(DenseFeature(name="price"), DenseFeature(name="age", default=0.4)),
        sparse=(
            SparseFeature(name="city", rows=len(cities) + 2, encoding="vocab"),
            SparseFeature(name="place", rows=50),
            SparseFeature(name="tags", rows=1000, encoding="hash", multi_hot=True),
        ),
    )
    vocabulary = path.with_name(f"{path.name}-{name}.parquet")
    pq.write_table(pa.table({"value": pa.array(cities, pa.string())}), vocabulary)
    model = torch.jit.script(Difference([feature.rows for feature in spec.sparse]))
    write_package(path, model, spec, vocabularies={"city": str(vocabulary)}, model_facts={}, metrics={})
    return path


def columns(seed: int, num_rows: int) -> dict[str, list[Any]]:
    """Raw values, some of which are missing or unknown."""
    numbers = [(seed * 7919 + row * 104_729) % 997 for row in range(num_rows)]
    return {
        "price": [None if n % 5 == 0 else n / 500 - 1 for n in numbers],
        "age": [n % 90 / 90 for n in numbers],
        "city": [[*CITIES, "Atlantis", None][n % 6] for n in numbers],
        "place": [n % 52 for n in numbers],
        "tags": [[f"tag {n % (i + 2)}" for i in range(n % 4)] for n in numbers],
    }


def as_json(values: Mapping[str, Sequence[Any]]) -> bytes:
    return json.dumps({"columns": values}).encode()


def as_rows(values: Mapping[str, Sequence[Any]]) -> bytes:
    rows = [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]
    return json.dumps({"rows": rows}).encode()


def as_arrow(table: pa.Table, **options: Any) -> bytes:
    output = pa.BufferOutputStream()
    with pa.ipc.new_stream(output, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as stream:
        stream.write_table(table)
    return bytes(output.getvalue())


class Server:
    """``dlrm-recipes serve`` in its own process on a free port; ``wait`` returns when it answers."""

    def __init__(self, package: Path, *options: str) -> None:
        command = [sys.executable, "-m", "dlrm_torchrec.cli.main", "serve", str(package), "--port", "0", *options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def wait(self) -> Self:
        assert self.process.stdout is not None
        found = re.fullmatch(r"serving \S+ at http://127\.0\.0\.1:(\d+)\n", self.process.stdout.readline())
        assert found, self.stop()
        self.port = int(found[1])
        return self

    def stop(self) -> tuple[int, str, str]:
        """Stops the server, and returns its exit code, stdout and stderr."""
        self.process.send_signal(signal.SIGTERM)
        output, errors = self.process.communicate(timeout=60)
        return self.process.returncode, output, errors

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)

    def socket(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=60)

    def ask(self, method: str, path: str, body: Any = None, content_type: str = JSON) -> tuple[int, bytes]:
        """Status and body of the answer, over a new connection."""
        connection = self.connect()
        try:
            return ask(connection, method, path, body, content_type)
        finally:
            connection.close()

    def predict(self, body: Any, content_type: str = JSON) -> tuple[int, dict[str, Any]]:
        status, answer = self.ask("POST", "/predict", body, content_type)
        return status, json.loads(answer)

    def metrics(self) -> dict[str, float]:
        """Samples by name and labels, as Prometheus reads them."""
        _, text = self.ask("GET", "/metrics")
        lines = [line.rsplit(" ", 1) for line in text.decode().splitlines() if not line.startswith("#")]
        return {name: float(value) for name, value in lines}


def ask(
    connection: http.client.HTTPConnection, method: str, path: str, body: Any = None, content_type: str = JSON
) -> tuple[int, bytes]:
    connection.request(method, path, body, {"Content-Type": content_type})
    response = connection.getresponse()
    return response.status, response.read()
