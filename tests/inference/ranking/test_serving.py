"""A server and files of a package that ranks items: what a client sends, and what it gets."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dlrm_torchrec.cli.main import BAD_ARGUMENTS, main
from dlrm_torchrec.inference.predictor import Predictor
from tests.inference.ranking.next_items import package, trained, users
from tests.inference.sequences.histories import columns
from tests.inference.serving.served import ARROW, Server, as_arrow, as_json
from tests.inference.user_files import write_users

TOP = 7


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return package(tmp_path_factory.mktemp("served"), *trained(), "int8")


@pytest.fixture(scope="module")
def server(served: Path) -> Iterator[Server]:
    running = Server(served, "--top", str(TOP), "--max-rows", "50").wait()
    yield running
    running.stop()


def told(served: Path, rows: list[dict[str, Any]], top: int = TOP) -> dict[str, Any]:
    predictor = Predictor.load(served, top=top)
    named = predictor.named(predictor(columns(rows)))
    return {"items": named["items"], "scores": [pytest.approx(each, abs=1e-5) for each in named["scores"]]}


@pytest.mark.parametrize("count", [1, 9])
def test_users_get_the_best_items_and_their_scores(served: Path, server: Server, count: int) -> None:
    rows, before = users(count, 11), server.metrics()["dlrm_rows_total"]
    expected = told(served, rows)
    assert [len(each) for each in expected["items"]] == [TOP] * count
    for body in (json.dumps({"rows": rows}).encode(), as_json(columns(rows))):
        status, answer = server.predict(body)
        assert (status, answer["unseen"], answer["package"]) == (200, {}, "log")
        assert {name: answer[name] for name in expected} == expected
    status, body = server.ask("POST", "/predict", as_arrow(pa.Table.from_pylist(rows)), ARROW)
    assert status == 200
    assert pa.ipc.open_stream(body).read_all().to_pydict() == expected
    assert server.metrics()["dlrm_rows_total"] == before + 3 * count


@pytest.mark.parametrize(
    ("change", "status", "message"),
    [
        (
            {"track": [], "time": []},
            422,
            "a row must have an event from which the next item follows: got none in row 0",
        ),
        (
            {"track": ["new"]},
            422,
            "a row must have an event from which the next item follows: got only items that training has not seen, 1",
        ),
        ({"candidates.track": ["i1"]}, 422, "columns must be the raw ones of 'log': got unknown ['candidates.track']"),
        ({"track": "i1"}, 422, "column 'track' must hold a list of values per row: got 'i1'; correct it"),
        ({"time": ["soon"]}, 422, "column 'time' must hold times: got 'soon'; correct it"),
    ],
)
def test_what_is_refused(server: Server, change: dict[str, Any], status: int, message: str) -> None:
    row = {"track": ["i1"], "time": [10**9], "candidates.time": 10**9 + 60}
    assert server.predict(json.dumps({"rows": [row]}))[0] == 200
    found, answer = server.predict(json.dumps({"rows": [row | change]}))
    assert (found, answer["error"][: len(message)]) == (status, message)


def test_an_answer_has_a_limit(served: Path) -> None:
    """Of items, which are written in one go."""
    server = Server(served, "--top", "4096").wait()
    try:
        row = {"track": ["i1"], "time": [10**9], "candidates.time": 10**9 + 60}
        assert server.predict(json.dumps({"rows": [row] * 10}))[0] == 200
        status, answer = server.predict(json.dumps({"rows": [row] * 11}))
        assert status == 413
        assert answer["error"].startswith(
            "items of an answer must be at most 40960: got 11 users with 4096 each; split"
        )
    finally:
        server.stop()


@pytest.mark.parametrize("form", ["parquet", "jsonl", "csv"])
def test_a_file_of_users_gets_their_items(served: Path, tmp_path: Path, form: str) -> None:
    rows = users(20, 3)
    source, target = tmp_path / f"rows.{form}", tmp_path / "items.parquet"
    write_users(source, rows)
    for options, top in (([], 10), (["--top", "3", "--force"], 3)):
        assert main(["predict", str(served), str(source), "--output", str(target), *options]) == 0
        assert pq.read_table(target).to_pydict() == told(served, rows, top)


@pytest.mark.parametrize(
    ("output", "options", "message"),
    [
        ("items.csv", [], r"output must be Parquet for a list of predictions per user: got .*items.csv; rename it"),
        ("items.parquet", ["--top", "0"], r"top must be at least 1: got 0; 10 is usual"),
        ("items.parquet", [], r"row 1 of the input, counted from 0: a row must have an event from which the next item"),
    ],
)
def test_what_cannot_be_told_is_said(
    served: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], output: str, options: list[str], message: str
) -> None:
    row = users(2, 1)[1]
    lines = [json.dumps(each) for each in (row, row | {"track": [], "time": []})]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    source, target = (str(tmp_path / name) for name in ("rows.jsonl", output))
    assert main(["predict", str(served), source, "--output", target, *options]) == BAD_ARGUMENTS
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / output).exists()
