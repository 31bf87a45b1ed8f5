"""A server in a process of its own, and clients that behave and that do not."""

from __future__ import annotations

import http.client
import json
import random
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from struct import pack
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from dlrm_torchrec.inference.predictor import Predictor
from tests.inference.serving.served import ARROW, CITIES, JSON, Server, as_arrow, as_json, as_rows, ask, columns, write

STRICT = "--max-delay-ms 300 --max-rows 64 --max-queued-rows 64 --max-request-mb 0.02 --timeout-s 1 --client-share 1"


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("served") / "package", "first", CITIES)


@pytest.fixture(scope="module")
def predictor(package: Path) -> Predictor:
    return Predictor.load(package)


@pytest.fixture(scope="module")
def servers(package: Path) -> Iterator[dict[str, Server]]:
    """Started together; at the end, each must not have complained and must leave when it is told to."""
    started = {name: Server(package, *options.split()) for name, options in (("plain", ""), ("strict", STRICT))}
    yield {name: server.wait() for name, server in started.items()}
    for server in started.values():
        code, _, errors = server.stop()
        assert (code, errors) == (0, "")


@pytest.fixture
def plain(servers: dict[str, Server]) -> Server:
    return servers["plain"]


@pytest.fixture
def strict(servers: dict[str, Server]) -> Server:
    return servers["strict"]


def grown(server: Server, before: dict[str, float]) -> dict[str, float]:
    """The increase of counters and histograms."""
    return {name: value - before.get(name, 0) for name, value in server.metrics().items()}


# Predictions ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_rows", [1, 165])
def test_rows_columns_and_arrow_are_answered_as_by_the_predictor(
    plain: Server, predictor: Predictor, num_rows: int
) -> None:
    values = columns(1, num_rows)
    expected = predictor(values)
    for body in (as_rows(values), as_json(values)):
        assert plain.predict(body) == (
            200,
            {"probabilities": expected.probabilities.tolist(), "unseen": expected.unseen, "package": "first"},
        )
    status, answer = plain.ask("POST", "/predict", as_arrow(pa.table(values)), f"{ARROW}; version=1")
    table = pa.ipc.open_stream(answer).read_all()
    assert (status, table["probability"].to_pylist()) == (200, expected.probabilities.tolist())
    assert table.schema.metadata[b"package"] == b"first"
    assert json.loads(table.schema.metadata[b"unseen"]) == expected.unseen
    assert num_rows == 1 or {"city", "place"} <= expected.unseen.keys()


def test_arrow_of_several_batches_and_types(plain: Server, predictor: Predictor) -> None:
    values = columns(2, 20)
    table = pa.table(values)
    kinds = [pa.float32(), pa.float64(), pa.large_string(), pa.uint16(), pa.large_list(pa.large_string())]
    table = table.cast(pa.schema(zip(table.column_names, kinds, strict=True)))
    table = pa.Table.from_batches(
        [batch for start in range(0, 20, 7) for batch in table[start : start + 7].to_batches()]
    )
    _, answer = plain.ask("POST", "/predict", as_arrow(table), ARROW)
    found = pa.ipc.open_stream(answer).read_all()["probability"].to_numpy()
    np.testing.assert_allclose(found, predictor(values).probabilities, rtol=1e-6)


def test_requests_that_wait_together_are_one_batch(strict: Server, predictor: Predictor) -> None:
    before = strict.metrics()
    requests = [columns(seed, 1 + seed % 5) for seed in range(8)]
    with ThreadPoolExecutor(len(requests)) as clients:
        answers = list(clients.map(lambda values: strict.predict(as_json(values)), requests))
    for values, (_, answer) in zip(requests, answers, strict=True):
        expected = predictor(values)
        np.testing.assert_allclose(answer["probabilities"], expected.probabilities, rtol=1e-6)
        assert answer["unseen"] == expected.unseen
    since = grown(strict, before)
    assert since["dlrm_batch_rows_count"] == 1
    assert since["dlrm_batch_rows_sum"] == since["dlrm_rows_total"] == sum(len(values["age"]) for values in requests)
    assert since['dlrm_latency_seconds_count{part="queue"}'] == since['dlrm_latency_seconds_count{part="total"}'] == 8
    assert since['dlrm_unseen_values_total{feature="city"}'] == sum(a["unseen"].get("city", 0) for _, a in answers)
    assert since['dlrm_requests_total{code="200",path="/predict"}'] == 8


def test_what_is_served_is_told(plain: Server, package: Path) -> None:
    manifest = json.loads((package / "package.json").read_text())
    for path in ("/", "/package"):
        told = json.loads(plain.ask("GET", path)[1])
        state = told.pop("serving")
        assert told == manifest
        assert state == {
            "age_s": state["age_s"],
            "loaded": manifest["fingerprint"],
            "deltas": [],
            "can_roll_back": False,
        }
        assert 0 <= state["age_s"] < 3600
    assert plain.ask("GET", "/healthz") == (200, b'{"alive":true}')
    assert plain.ask("GET", "/readyz") == (200, b'{"package":"first"}')
    (info,) = [name for name in plain.metrics() if name.startswith("dlrm_package_info")]
    assert manifest["files"]["model.pt"] in info
    assert f'torch="{manifest["versions"]["torch"]}"' in info


# What is refused ------------------------------------------------------------------------------------------------------

GOOD = columns(3, 2)
TABLE = pa.table(GOOD)


def changed(**values: Any) -> bytes:
    return as_json({**GOOD, **values})


def replaced(name: str, column: pa.Array) -> bytes:
    return as_arrow(TABLE.set_column(TABLE.column_names.index(name), name, column))


def old_codec() -> bytes:
    """A stream whose batch names its codec like Arrow 0.17."""
    output = pa.BufferOutputStream()
    with pa.ipc.new_stream(output, TABLE.schema) as stream:
        stream.write_batch(TABLE.to_batches()[0], custom_metadata={"ARROW:experimental_compression": "zstd"})
    return bytes(output.getvalue())


def shared_buffers() -> bytes:
    """A stream whose columns all share the same thousand bytes."""
    stream, column = as_arrow(pa.table({name: ["a" * 1000] for name in GOOD})), pack("<ii", 0, 1000) + b"a" * 1000
    for start in range(0, len(GOOD) * len(column), len(column)):
        for offset, length in ((0, 8), (8, 1000)):
            stream = stream.replace(pack("<qq", start + offset, length), pack("<qq", offset, length))
    stream = stream.replace(pack("<q", len(GOOD) * len(column)), pack("<q", len(column)))
    return stream.replace(len(GOOD) * column, column)


def nulls(length: int) -> pa.Array:
    """Any number of nulls that take no bytes."""
    return pa.Array.from_buffers(pa.null(), length, [None])


ARROW_BODY = as_arrow(TABLE)
MANY_BATCHES = as_arrow(pa.Table.from_batches(TABLE.to_batches(max_chunksize=1) * 40))
REFUSED = [
    (400, JSON, b"", "body must be JSON: got Expecting value"),
    (400, JSON, b'{"rows": [', "body must be JSON"),
    (400, JSON, b"\xff\xfe\xfd", "body must be JSON"),
    (400, JSON, b"[" * 10_000, "body must be JSON with few nested levels"),
    (400, JSON, b'{"columns":' * 2000, "body must be JSON with few nested levels"),
    (400, JSON, changed(price=[float("nan"), 1]), "got NaN, which JSON does not have; write null for a missing"),
    (400, JSON, changed(price=[float("-inf"), 1]), "got -Infinity, which JSON does not have"),
    (
        400,
        JSON,
        changed(age=[1, 2]).replace(b"[1,", b"[" + b"9" * 65 + b","),
        "got a number of 65 bytes, and 64 is the most",
    ),
    (422, JSON, b"[]", "body must be {"),
    (422, JSON, b'{"rows": []}', "a request must have rows: got none"),
    (422, JSON, b'{"rows": [1]}', "rows must be objects that all name the same features: got something else in row 0"),
    (422, JSON, b'{"rows": [{"a": 1}, {"b": 1}]}', "got something else in row 1"),
    (422, JSON, b'{"rows": [{}]}', "columns must be the raw ones of 'first'"),
    (422, JSON, b'{"columns": {}}', "columns must be the raw ones of 'first'"),
    (422, JSON, b'{"columns": {}, "rows": []}', "body must be {"),
    (422, JSON, b'{"columns": [[1]]}', "body must be {"),
    (422, JSON, as_json({name: [] for name in GOOD}), "a request must have rows: got none"),
    (422, JSON, changed(age=[1]), "columns must have one value per row: got"),
    (422, JSON, changed(age="young"), "column 'age' must hold one value per row"),
    (422, JSON, changed(age=["young", 2]), "column 'age' must hold numbers: got 'young'"),
    (422, JSON, changed(price=[1e39, 2]), "column 'price' must hold finite float32 numbers"),
    (422, JSON, changed(price=[1, 2]).replace(b"[1,", b"[1e999,"), "column 'price' must hold finite"),
    (422, JSON, changed(price=[3e38, 2], age=[3e38, 2]), "got a row whose values overflow the model"),
    (422, JSON, changed(city=["\ud800", "Paris"]), "column 'city' must hold single numbers or texts"),
    (422, JSON, changed(city=[{"a": 1}, 1]), "column 'city' must hold single numbers or texts"),
    (422, JSON, changed(tags=["ski", "sun"]), "column 'tags' must hold a list of values per row: got 'ski'"),
    (422, JSON, changed(tags=[[["ski"]], []]), "column 'tags'"),
    (422, JSON, changed(**{"x" * 3000: [1, 2]}), "columns must be the raw ones of 'first'"),
    (413, JSON, as_json({name: [None] * 5000 for name in GOOD}), "rows must be at most 4096: got 5000; split"),
    (413, JSON, as_rows({name: [None] * 4097 for name in GOOD}), "rows must be at most 4096: got 4097; split"),
    (
        413,
        JSON,
        b'{"rows": [%b]}' % b",".join([b"[]"] * 2_600_000),
        "values must be at most 200000: got more; split",
    ),
    (
        413,
        JSON,
        b'{"columns": {"price": [%b]}}' % b",".join([b"1"] * 200_000),
        "values must be at most 200000: got more",
    ),
    (400, JSON, b'{"rows": [%b]}' % (b"[" * 3000 + b"]" * 3000), "few nested levels, at most 4: got more"),
    (413, JSON, changed(city=["a" * 5000, "b"]), "texts must have at most 4096 bytes: got more; shorten them"),
    (413, JSON, changed(tags=[['[{",\\' * 900, "\\"], []]), "texts must have at most 4096 bytes: got more"),
    (400, JSON, as_json(GOOD).decode().encode("utf-16"), "body must be JSON: got 'utf-8' codec can't decode"),
    (400, JSON, changed(age=[1, 2]).replace(b"[1,", b"[0." + b"9" * 5000 + b","), "got a number of 5002 bytes"),
    (413, ARROW, replaced("city", pa.array(["a" * 5000, "b"])), "texts must have at most 4096 bytes: got more"),
    (413, ARROW, MANY_BATCHES, "batches must be at most 64: got more; write larger ones"),
    (
        413,
        ARROW,
        replaced("tags", pa.array([[1] * 1_000_001, []], pa.list_(pa.int8()))),
        "values in lists must be at m",
    ),
    (
        422,
        ARROW,
        as_arrow(pa.table({f"c{i}": [1] for i in range(1000)})),
        "columns must be the 6 raw ones: got 1000; leave others out",
    ),
    (400, ARROW, b"", "body must be an Arrow IPC stream"),
    (400, ARROW, as_json(GOOD), "body must be an Arrow IPC stream"),
    (400, ARROW, ARROW_BODY[: len(ARROW_BODY) // 2], "body must be an Arrow IPC stream"),
    (400, ARROW, b"\xff\xff\xff\xff\xff\xff\xff\x7f", "body must be an Arrow IPC stream"),
    (422, ARROW, as_arrow(TABLE[:0]), "a request must have rows: got none"),
    (422, ARROW, as_arrow(TABLE, compression="zstd"), "batches must be plain: got a batch with a codec"),
    (422, ARROW, old_codec(), "batches must be plain: got a batch with a codec or metadata"),
    (
        422,
        ARROW,
        replaced("city", pa.array(["a", "b"]).dictionary_encode()),
        "column 'city' must hold numbers, strings, times",
    ),
    (422, ARROW, replaced("tags", pa.array([[[1]], []])), "column 'tags' must hold numbers, strings, times or lists"),
    (
        413,
        ARROW,
        replaced("tags", pa.ListArray.from_arrays([0, 9, 10**9], nulls(10**9))),
        "columns must not be larger than the request's body",
    ),
    (422, ARROW, as_arrow(pa.table([[1], [2]], ["age", "age"])), "columns must have distinct names"),
    (
        413,
        ARROW,
        as_arrow(pa.table({"price": nulls(10**9)})),
        "rows must be at most 4096: got more; split",
    ),
]


@pytest.mark.parametrize("case", range(len(REFUSED)))
def test_a_malformed_body_is_refused_with_a_reason(plain: Server, case: int) -> None:
    status, content_type, body, reason = REFUSED[case]
    found, answer = plain.predict(body, content_type)
    assert (found, list(answer)) == (status, ["error"])
    assert reason in answer["error"]


def test_hundreds_of_broken_bodies_are_answered(plain: Server) -> None:
    draw = random.Random(0)
    connection = plain.connect()
    for content_type, body in ((JSON, as_rows(GOOD)), (JSON, as_json(GOOD)), (ARROW, ARROW_BODY)):
        counts = {200: 0, 400: 0, 413: 0, 422: 0}
        for _ in range(100):
            broken = bytearray(body)
            for _ in range(draw.choice([1, 4])):
                broken[draw.randrange(len(broken))] = draw.choice([draw.randrange(256), *b'0]}",\xff'])
            if draw.random() < 0.2:
                del broken[draw.randrange(len(broken)) :]
            status, answer = ask(connection, "POST", "/predict", bytes(broken), content_type)
            counts[status] += 1
            assert status == 200 or json.loads(answer)["error"]
        assert counts[400] > 20
    connection.close()
    assert plain.predict(as_json(GOOD))[0] == 200


def test_other_requests_are_refused(plain: Server) -> None:
    for method, path, content_type, status, reason in (
        ("GET", "/predict", JSON, 405, "Method Not Allowed"),
        ("POST", "/metrics", JSON, 405, "Method Not Allowed"),
        ("POST", "/predict/", JSON, 404, "Not Found"),
        ("POST", "/predict", "text/csv", 415, f"content type must be {JSON} or {ARROW}: got text/csv"),
    ):
        found, answer = plain.ask(method, path, b"{}", content_type)
        assert (found, json.loads(answer)) == (status, {"error": reason})
    connection = plain.connect()
    connection.request("POST", "/predict", b"{}", {"Content-Type": JSON, "Content-Encoding": "gzip"})
    assert connection.getresponse().status == 415


def test_a_body_that_is_too_large_is_refused_before_it_has_come(strict: Server) -> None:
    with strict.socket() as client:
        client.sendall(
            b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: %b\r\nContent-Length: 20001\r\n\r\n{" % JSON.encode()
        )
        assert client.recv(1000).startswith(b"HTTP/1.1 413 ")
    status, answer = strict.predict(iter([b" " * 9000] * 3))  # in chunks, without a length
    assert (status, answer) == (413, {"error": "body must have at most 20000 bytes: got more; split the request"})
    assert strict.predict(as_json(columns(0, 65)))[0] == 413


# Load -----------------------------------------------------------------------------------------------------------------


def test_what_does_not_fit_into_the_queue_is_told_to_try_later(strict: Server) -> None:
    with ThreadPoolExecutor(1) as clients:
        first = clients.submit(strict.predict, as_json(columns(0, 64)))
        wait_until(lambda: strict.metrics()["dlrm_queued_rows"] == 64)
        connection = strict.connect()
        connection.request("POST", "/predict", as_json(columns(0, 5)), {"Content-Type": JSON})
        response = connection.getresponse()
        assert (response.status, response.headers["Retry-After"]) == (503, "1")
        assert "64 rows" in json.loads(response.read())["error"]
        assert first.result()[0] == 200


def test_rows_of_a_client_that_has_gone_are_not_computed(strict: Server) -> None:
    before = strict.metrics()
    connection = strict.connect()
    connection.request("POST", "/predict", as_json(columns(0, 50)), {"Content-Type": JSON})
    wait_until(lambda: strict.metrics()["dlrm_queued_rows"] >= 50)
    connection.close()
    wait_until(lambda: strict.metrics()["dlrm_queued_rows"] == 0)
    assert strict.predict(as_json(columns(0, 3)))[0] == 200
    since = grown(strict, before)
    assert since["dlrm_batch_rows_sum"] == 3
    assert since['dlrm_requests_total{code="499",path="/predict"}'] == 1


SLOW = [
    (b"", b""),
    (b"POST /predict HTTP/1.1\r\nHost", b""),
    (b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 90\r\n\r\n", b"408"),
    (b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", b"200"),
]


def test_clients_that_send_too_slowly_are_cut_off(strict: Server) -> None:
    def status(sent: bytes) -> bytes:
        """The status of the answer once the connection is closed; more of the request comes slowly or not at all."""
        received, more = b"", b"" if sent.startswith(b"GET") else b"a"
        with strict.socket() as client:
            client.sendall(sent)
            client.settimeout(0.1)
            for _ in range(300):
                try:
                    part = client.recv(1000)
                except TimeoutError:
                    with suppress(ConnectionError):  # the server has just closed; its answer can still be read
                        client.sendall(more if sent else b"")
                    continue
                except ConnectionResetError:  # TCP forgets an answer that was not read before the reset
                    return status(sent)
                if not part:
                    return received[9:12]
                received += part
        return b"still open"

    with ThreadPoolExecutor(len(SLOW)) as clients:
        assert list(clients.map(status, [sent for sent, _ in SLOW])) == [answer for _, answer in SLOW]


def wait_until(condition: Any) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


# Another package ------------------------------------------------------------------------------------------------------


def test_reloads_under_load_drop_nothing(plain: Server, package: Path, predictor: Predictor) -> None:
    values = columns(4, 6)
    expected = {"first": predictor(values).probabilities}
    write(package, "second", CITIES[::-1])
    expected["second"] = Predictor.load(package)(values).probabilities
    assert not np.allclose(expected["first"], expected["second"])
    going = True

    def client(_: int) -> list[str]:
        connection, served = plain.connect(), []
        while going:
            status, body = ask(connection, "POST", "/predict", as_json(values))
            answer = json.loads(body)
            assert status == 200
            np.testing.assert_allclose(answer["probabilities"], expected[answer["package"]], rtol=1e-6)
            served.append(answer["package"])
        connection.close()
        return served

    before = plain.metrics()
    with ThreadPoolExecutor(4) as clients:
        answers = clients.map(client, range(4))
        try:
            time.sleep(0.1)
            assert plain.ask("POST", "/reload") == (200, b'{"package":"second","version":0}')
            time.sleep(0.1)
            write(package, "first", CITIES)
            assert plain.ask("POST", "/reload") == (200, b'{"package":"first","version":0}')
            time.sleep(0.1)
        finally:
            going = False
        for served in answers:
            assert served[0] == served[-1] == "first"
            assert "second" in served
    assert grown(plain, before)['dlrm_package_loads_total{outcome="done"}'] == 2


def test_a_package_that_does_not_load_leaves_the_one_that_is_served(plain: Server, package: Path) -> None:
    before = plain.metrics()
    model = (package / "model.pt").read_bytes()
    (package / "model.pt").write_bytes(model[:-1])
    try:
        status, answer = plain.ask("POST", "/reload")
        assert (status, "model.pt must have sha256" in json.loads(answer)["error"]) == (409, True)
        plain.process.send_signal(signal.SIGHUP)
        assert plain.process.stderr is not None
        assert "model.pt must have sha256" in plain.process.stderr.readline()
        assert plain.predict(as_json(GOOD))[1]["package"] == "first"
    finally:
        (package / "model.pt").write_bytes(model)
    plain.process.send_signal(signal.SIGHUP)
    assert plain.process.stdout is not None
    assert plain.process.stdout.readline() == "reload: serving first\n"
    since = grown(plain, before)
    assert [since[f'dlrm_package_loads_total{{outcome="{outcome}"}}'] for outcome in ("failed", "done")] == [2, 1]


def without_files(manifest: dict[str, Any]) -> None:
    manifest["files"] = {}


def with_many_rows(manifest: dict[str, Any]) -> None:
    (tags,) = (feature for feature in manifest["spec"]["sparse"] if feature["name"] == "tags")
    tags["rows"] = 1e30


@pytest.mark.parametrize("spoil", [without_files, with_many_rows])
def test_a_spoiled_list_of_files_or_spec_is_refused_with_a_reason(
    plain: Server, package: Path, spoil: Callable[[dict[str, Any]], None]
) -> None:
    """A package is told to be wrong when it is loaded, not by a failure then or at each prediction."""
    whole = (package / "package.json").read_text()
    manifest = json.loads(whole)
    spoil(manifest)
    (package / "package.json").write_text(json.dumps(manifest))
    try:
        status, answer = plain.ask("POST", "/reload")
    finally:
        (package / "package.json").write_text(whole)
    assert (status, "the server keeps serving the previous package" in json.loads(answer)["error"]) == (409, True)
    assert plain.predict(as_json(GOOD))[0] == 200


# The end --------------------------------------------------------------------------------------------------------------


def test_a_request_in_flight_is_answered_after_sigterm(strict: Server, predictor: Predictor) -> None:
    """This test ends the server, so it must be the last one that uses ``strict``."""
    values = columns(5, 4)
    connection = strict.connect()
    connection.request("POST", "/predict", as_json(values), {"Content-Type": JSON})
    wait_until(lambda: strict.metrics()["dlrm_queued_rows"] >= 4)
    strict.process.send_signal(signal.SIGTERM)
    wait_until(lambda: refuses(strict))
    answer = json.loads(connection.getresponse().read())
    assert answer["probabilities"] == predictor(values).probabilities.tolist()
    assert strict.process.wait(timeout=60) == 0


def refuses(server: Server) -> bool:
    try:
        server.ask("GET", "/healthz")
    except (ConnectionError, http.client.HTTPException):
        return True
    return False
