"""Minutes of load, with reloads in between: nothing fails, and memory stays what it was."""

from __future__ import annotations

import json
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from dlrm_torchrec.inference.predictor import Predictor
from tests.inference.serving.served import ARROW, CITIES, JSON, Server, as_arrow, as_json, as_rows, ask, columns, write

DURATION_S = 600
RELOAD_EVERY_S = 2
CLIENTS, PAUSE_S = 4, 0.01
WARM_UP = 0.2  # of the duration, in which allocators and TorchScript meet every size
MAX_GROWTH_BYTES = 16 << 20  # a body kept of every thousandth request would be more

SIZES = [1, 2, 7, 40, 165, 1000, 2000]


@pytest.mark.slow
@pytest.mark.timeout(DURATION_S + 300)
def test_nothing_is_dropped_and_memory_is_flat(tmp_path: Path) -> None:
    values = [columns(seed, num_rows) for seed, num_rows in enumerate(SIZES)]
    bodies = [
        body
        for each in values
        for body in ((JSON, as_rows(each)), (JSON, as_json(each)), (ARROW, as_arrow(pa.table(each))), (JSON, b"[]"))
    ]
    expected = {}
    for name, cities in (("second", CITIES[::-1]), ("first", CITIES)):
        predictor = Predictor.load(write(tmp_path / "package", name, cities))
        expected[name] = [predictor(each).probabilities for each in values]
    server = Server(tmp_path / "package").wait()
    end = time.monotonic() + DURATION_S

    def client(first: int) -> int:
        """Checks the answers to requests, and returns their number."""
        connection = server.connect()
        for step in count(first):
            content_type, body = bodies[step % len(bodies)]
            status, answer = ask(connection, "POST", "/predict", body, content_type)
            if body == b"[]":
                assert (status, list(json.loads(answer))) == (422, ["error"])
            else:
                assert status == 200
                name, probabilities = read(content_type, answer)
                of = step % len(bodies) // 4
                np.testing.assert_allclose(probabilities, expected[name][of], rtol=1e-6)
            if time.monotonic() > end:
                connection.close()
                return step - first + 1
            time.sleep(PAUSE_S)
        raise AssertionError

    def owner() -> list[float]:
        """Reloads two packages in turns, and returns the bytes of memory after each reload."""
        resident = []
        for turn in count():
            name, cities = (("second", CITIES[::-1]), ("first", CITIES))[turn % 2]
            write(tmp_path / "package", name, cities)
            assert server.ask("POST", "/reload")[0] == 200
            resident.append(server.metrics()["process_resident_memory_bytes"])
            if time.monotonic() > end:
                return resident
            time.sleep(RELOAD_EVERY_S)
        raise AssertionError

    with ThreadPoolExecutor(CLIENTS + 1) as threads:
        reloading = threads.submit(owner)
        answered = sum(threads.map(client, range(0, CLIENTS * 5, 5)))
        resident = reloading.result()
    counted = server.metrics()
    assert (code_and_errors := server.stop()[::2]) == (0, ""), code_and_errors
    codes = {name: value for name, value in counted.items() if 'path="/predict"' in name}
    assert sum(codes.values()) == answered
    tenth = len(resident) // 10
    start, last = (statistics.median(part) for part in (resident[2 * tenth : 3 * tenth], resident[-tenth:]))
    print(
        f"{answered} requests, {len(resident)} reloads, MiB: {[int(each) >> 20 for each in resident[:: max(tenth, 1)]]}"
    )
    assert last - start <= MAX_GROWTH_BYTES


def read(content_type: str, answer: bytes) -> tuple[str, list[float]]:
    """The name of the package and the probabilities."""
    if content_type == ARROW:
        table = pa.ipc.open_stream(answer).read_all()
        return table.schema.metadata[b"package"].decode(), table["probability"].to_pylist()
    parsed = json.loads(answer)
    return parsed["package"], parsed["probabilities"]
