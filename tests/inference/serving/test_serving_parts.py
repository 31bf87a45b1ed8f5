"""The queue of a server, its states that are hard to meet from outside, and how it is started."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import random
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import nullcontext, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from starlette.exceptions import HTTPException

from dlrm_torchrec.cli.main import BAD_ARGUMENTS, main
from dlrm_torchrec.inference.package import write_package
from dlrm_torchrec.inference.predictor import AnyInputs, Prediction, Predictor
from dlrm_torchrec.inference.serving.app import Service
from dlrm_torchrec.inference.serving.batcher import Batcher
from dlrm_torchrec.inference.serving.json_body import read_json
from dlrm_torchrec.inference.serving.json_shape import check_shape
from dlrm_torchrec.inference.serving.limits import ServingConfig
from dlrm_torchrec.inference.serving.models import Served
from dlrm_torchrec.inference.serving.prometheus import Metrics
from dlrm_torchrec.schema import DatasetSpec, DenseFeature, Label, SparseFeature
from tests.inference.packages import scripted
from tests.inference.serving.served import ARROW, CITIES, JSON, as_arrow, as_json, columns, write


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("parts") / "package", "first", CITIES)


class Watched(Predictor):
    """A predictor that tells how many rows it ran on, and waits for ``may_run``."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.ran: list[int] = []
        self.may_run = threading.Event()

    def run(self, inputs: AnyInputs) -> Prediction:
        self.ran.append(len(inputs))
        assert self.may_run.wait(30)
        return super().run(inputs)


def test_the_queue_is_run_in_order_in_batches_that_fit_together(package: Path) -> None:
    one, other = Watched.load(package), Watched.load(package)
    # while the first runs; None: its client goes. Batches hold 8 rows, and a larger request is one of its own.
    requests = [(one, 1), (one, 3), (one, 4), (one, 2), (other, 1), (one, 20), (one, None), (one, 1), (one, 6)]

    async def answers() -> list[Any]:
        batcher = Batcher(max_batch_rows=8, max_delay_s=0.0, threads=1, metrics=Metrics(lambda: 0))
        running = asyncio.create_task(batcher.run())
        submitted = []
        for seed, (predictor, num_rows) in enumerate(requests):
            answer = batcher.submit(predictor, predictor.encode(columns(seed, num_rows or 5)))
            submitted.append(answer)
            if num_rows is None:
                answer.cancel()
            while not one.ran:
                await asyncio.sleep(0)
        one.may_run.set()
        other.may_run.set()
        found = await asyncio.gather(*submitted, return_exceptions=True)
        running.cancel()
        return found

    for seed, ((_, num_rows), found) in enumerate(zip(requests, asyncio.run(answers()), strict=True)):
        if num_rows is None:
            assert isinstance(found, asyncio.CancelledError)
        else:
            expected = Predictor.load(package)(columns(seed, num_rows)).predictions
            np.testing.assert_allclose(found.predictions, expected, rtol=1e-6)
    assert (one.ran, other.ran) == ([1, 7, 2, 20, 7], [1])


LEVELS, VALUES, TEXTS = ("few nested levels", "values must be", "texts must have")


@pytest.mark.parametrize("seed", range(3))
def test_the_shape_of_a_document_is_that_which_python_finds(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a text holds and wherever a block ends; the reference walks through the parsed document."""
    monkeypatch.setattr("dlrm_torchrec.inference.serving.json_shape.BLOCK_BYTES", 7)
    draw = random.Random(seed)
    limits = ServingConfig(max_values=12, max_text_bytes=8)
    refused = dict.fromkeys((LEVELS, VALUES, TEXTS, ""), 0)
    for _ in range(600):
        document = random_document(draw, 0)
        ascii_only = draw.random() < 0.5
        values, levels, longest = shape(document, ascii_only=ascii_only)
        body = json.dumps(document, ensure_ascii=ascii_only).encode()
        wanted = [VALUES] * (values > 12) + [LEVELS] * (levels > 4) + [TEXTS] * (longest > 8) or [""]
        found = ""
        try:
            check_shape(body, limits)
        except HTTPException as error:
            (found,) = (name for name in refused if name and name in error.detail)
        assert found in wanted, body
        refused[found] += 1
    assert min(refused.values()) > 20


def test_other_threads_go_on_while_many_numbers_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that lets go of the interpreter only at its end would stop the loop of the server meanwhile."""
    monkeypatch.setattr("dlrm_torchrec.inference.serving.json_body.check_shape", lambda *_: None)
    body = b'{"columns": {"fractions": [%b], "integers": [%b]}}' % (
        b",".join([b"0.12345678901234567890"] * 4096),
        b"[" + b",".join([b"123456789012345"] * 200_000) + b"]",
    )
    found: dict[str, list[Any]] = {}

    def turns(read: Callable[[], dict[str, list[Any]]]) -> int:
        """How often another thread had its turn."""
        count, done = 0, threading.Event()

        def other() -> None:
            nonlocal count
            while not done.wait(1e-5):
                count += 1

        thread = threading.Thread(target=other)
        thread.start()
        found.update(read())
        done.set()
        thread.join()
        return count

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    try:
        at_once = turns(lambda: json.loads(body)["columns"])
        expected = dict(found)
        assert turns(lambda: read_json(body, ServingConfig())) > at_once + 10
    finally:
        sys.setswitchinterval(interval)
    assert found == expected


def random_document(draw: random.Random, level: int) -> Any:
    kind = draw.choice("tnldld" if level < 5 else "tn")
    if kind == "t":
        return "".join(
            draw.choice(['"', "\\", "[", "]", "{", "}", ",", ":", "é", "a"]) for _ in range(draw.choice([0, 1, 2, 6]))
        )
    if kind == "n":
        return draw.choice([None, 1, -2.5, True])
    children = [random_document(draw, level + 1) for _ in range(draw.choice([0, 1, 3, 4]))]
    return children if kind == "l" else {f'{i}"': child for i, child in enumerate(children)}


def shape(document: Any, *, ascii_only: bool) -> tuple[int, int, int]:
    """Values and lists besides the first, plus two for each key; levels; bytes of the longest text as JSON."""

    def size(text: str) -> int:
        return len(json.dumps(text, ensure_ascii=ascii_only).encode()) - 2

    if isinstance(document, str):
        return 0, 0, size(document)
    if not isinstance(document, (list, dict)):
        return 0, 0, 0
    keys = list(document) if isinstance(document, dict) else []
    children = list(document.values()) if isinstance(document, dict) else document
    parts = [shape(each, ascii_only=ascii_only) for each in children]
    values, levels, longest = ([part[i] for part in parts] for i in range(3))
    separators = max(0, len(parts) - 1) + 2 * len(keys)
    return 1 + separators + sum(values), 1 + max(levels, default=0), max([0, *longest, *map(size, keys)])


def called(service: Service, path: str, body: bytes = b"", content_type: str = JSON) -> tuple[int, Any]:
    """Status and body, parsed if it is JSON, of what the application of a service answers, without a server."""
    scope = {
        "type": "http",
        "method": "POST" if body else "GET",
        "path": path,
        "query_string": b"",
        "headers": [(b"content-type", content_type.encode())],
    }
    sent: list[Any] = []

    async def call() -> None:
        messages = asyncio.Queue[Any]()
        messages.put_nowait({"type": "http.request", "body": body})

        async def send(message: Any) -> None:
            sent.append(message)

        running = asyncio.create_task(service.batcher.run())
        await service.app(lambda _: nullcontext())(scope, messages.get, send)
        running.cancel()

    with suppress(ZeroDivisionError):  # that the server would log
        asyncio.run(call())
    answered = sent[1]["body"]
    return sent[0]["status"], json.loads(answered) if content_type == JSON else answered


@pytest.mark.parametrize("path", ["/readyz", "/package", "/predict"])
def test_before_the_package_is_loaded_clients_are_told_to_try_later(package: Path, path: str) -> None:
    status, answer = called(Service(package, ServingConfig()), path, as_json(columns(0, 1)) * (path == "/predict"))
    assert (status, answer) == (503, {"error": "the package must be loaded first: got none yet; try later"})


def test_a_model_that_fails_fails_the_request_and_tells_no_more(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service(package, ServingConfig())
    predictor = Predictor.load(package)
    monkeypatch.setattr(predictor, "run", lambda _: 1 / 0)
    service.models.served = Served(predictor, 0.0, "")
    answer = called(service, "/predict", as_json(columns(0, 2)))
    assert answer == (500, {"error": "the server failed; its log says why"})


def test_several_labels_under_any_names(tmp_path: Path) -> None:
    label, feature = 'kupił "x"', 'user.city\n{"ø"}\\'
    spec = DatasetSpec(
        name="log",
        label="click",
        more_labels=(Label(name=label),),
        dense=(DenseFeature(name="x y"),),
        sparse=(
            SparseFeature(name=feature, rows=5),
            SparseFeature(name="tags", rows=9, multi_hot=True, weights="w/t"),
            SparseFeature(name="hour", column="when", rows=24, part="hour"),
        ),
    )
    write_package(tmp_path / "p", scripted(spec), spec, vocabularies={}, model_facts={}, metrics={})
    values: dict[str, Any] = {"x y": [0.5, None], feature: [3, 7], "tags": [[1, 2], []], "w/t": [[0.5, -2.0], []]}
    values["when"] = ["2026-11-29T07:30:00+02:00", None]
    first = 0.5 + np.cos(3) + 0.5 * np.cos(2) - 2 * np.cos(4) + np.cos(3 * 5)
    logits = np.array([[first, 2 * first], [2.0, 4.0]])
    expected = 1 / (1 + np.exp(-logits))
    service = Service(tmp_path / "p", ServingConfig())
    service.models.served = Served(Predictor.load(tmp_path / "p"), 0.0, "")
    status, answer = called(service, "/predict", as_json(values))
    assert (status, answer["unseen"], answer["package"]) == (200, {feature: 1}, "log")
    assert list(answer["predictions"]) == ["click", label]
    np.testing.assert_allclose(np.transpose(list(answer["predictions"].values())), expected, rtol=1e-6)
    exported = text_string_to_metric_families(generate_latest(service.metrics.registry).decode())
    unseen = [sample for family in exported for sample in family.samples if sample.name == "dlrm_unseen_values_total"]
    assert [(sample.labels, sample.value) for sample in unseen] == [({"feature": feature}, 1.0)]

    service = Service(tmp_path / "p", ServingConfig())
    service.models.served = Served(Predictor.load(tmp_path / "p"), 0.0, "")
    values["when"] = pa.array([datetime(2026, 11, 29, 5, 30, tzinfo=UTC), None])
    status, stream = called(service, "/predict", as_arrow(pa.table(values)), ARROW)
    table = pa.ipc.open_stream(stream).read_all()
    assert (status, table.column_names) == (200, ["click", label])
    np.testing.assert_allclose(np.transpose(table.columns), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ("--max-rows 0", "max_rows must be from 1 to 1000000000: got 0; change it"),
        ("--timeout-s -1", "timeout_s must be from 1 to 1000000000: got -1"),
        ("--max-delay-ms nan", "max_delay_ms must be from 0 to 1000000000: got nan"),
        ("--port 65536", "port must be from 0 to 65535: got 65536"),
        (
            "--max-rows 9000",
            "max_queued_rows times client_share must be at least max_rows: got 16384 times 0.5 for requests of up to",
        ),
        ("--host 127.0.0.1 --port {taken}", "Address already in use"),
        ("--port 0", "folder {package} must hold a package.json"),
    ],
)
def test_a_server_that_cannot_begin_says_why(
    option: str, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        named = {"taken": listening.getsockname()[1], "package": tmp_path}
        assert main(["serve", str(tmp_path), *option.format(**named).split()]) == BAD_ARGUMENTS
    assert reason.format(**named) in capsys.readouterr().err


def test_other_commands_do_not_wait_for_what_a_server_imports() -> None:
    code = "import sys; from dlrm_torchrec.cli.main import command_line; command_line(); print(*sys.modules)"
    imported = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "dlrm_torchrec.inference.serving.limits" in imported
    assert not {"torch", "pyarrow", "starlette", "uvicorn", "prometheus_client"} & set(imported)


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr("dlrm_torchrec.cli.serve.find_spec", lambda name: found(name) if name != "uvicorn" else None)
    assert main(["serve", "anything"]) == BAD_ARGUMENTS
    assert "got no uvicorn; pip install starlette uvicorn prometheus_client" in capsys.readouterr().err
