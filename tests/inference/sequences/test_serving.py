"""A server and batch scoring of histories: what a client sends, and what it gets."""

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
from tests.inference.sequences.histories import columns, draw
from tests.inference.sequences.test_packages import package, trained
from tests.inference.serving.served import ARROW, Server, as_arrow, as_json
from tests.inference.user_files import write_users


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return package(tmp_path_factory.mktemp("served"), *trained("paper", "quotient_remainder"), "int8")


@pytest.fixture(scope="module")
def server(served: Path) -> Iterator[Server]:
    running = Server(served, "--max-rows", "50").wait()
    yield running
    running.stop()


def lists(served: Path, rows: list[dict[str, Any]]) -> list[Any]:
    predictor = Predictor.load(served)
    found: list[Any] = predictor.named(predictor(columns(rows)))["probabilities"]
    return [pytest.approx(each, abs=1e-6) for each in found]


def test_users_get_a_probability_for_each_candidate(served: Path, server: Server) -> None:
    rows = draw(7, 11)
    expected = lists(served, rows)
    for body in (json.dumps({"rows": rows}).encode(), as_json(columns(rows))):
        status, answer = server.predict(body)
        assert (status, answer["probabilities"], answer["unseen"]) == (200, expected, {})
    status, answer_body = server.ask("POST", "/predict", as_arrow(pa.Table.from_pylist(rows)), ARROW)
    assert status == 200
    assert pa.ipc.open_stream(answer_body).read_all()["probability"].to_pylist() == expected
    candidates = sum(len(row["candidates.track"]) for row in rows)
    assert server.metrics()["dlrm_rows_total"] == 3 * candidates


@pytest.mark.parametrize(
    ("change", "status", "message"),
    [
        ({"action": ["buy"]}, 422, "column 'action' must hold the actions of the training data: got 'buy' in row 0; "),
        ({"candidates.track": [], "candidates.artist": []}, 422, "a row must have candidates: got none in row 0; send"),
        ({"candidates.track": ["i1"] * 60, "candidates.artist": [1] * 60}, 413, "candidates of all users must be at "),
    ],
)
def test_what_is_refused(server: Server, change: dict[str, Any], status: int, message: str) -> None:
    row = draw(2, 1)[1]
    row |= {name: row[name][:1] for name in ("track", "artist", "action", "time")}
    found, answer = server.predict(json.dumps({"rows": [row | change]}))
    assert (found, answer["error"][: len(message)]) == (status, message)


@pytest.mark.parametrize("form", ["parquet", "jsonl", "csv"])
def test_a_file_of_users_gets_a_list_for_each_of_them(served: Path, tmp_path: Path, form: str) -> None:
    rows = draw(20, 3)[1:]
    source, target = tmp_path / f"rows.{form}", tmp_path / "scores.parquet"
    write_users(source, rows)
    assert main(["predict", str(served), str(source), "--output", str(target)]) == 0
    assert pq.read_table(target)["probability"].to_pylist() == lists(served, rows)


@pytest.mark.parametrize(
    ("line", "output", "message"),
    [
        (
            "{",
            "scores.parquet",
            r"must have a JSON object on each line: got JSONDecodeError.* in row 1, counted from 0;",
        ),
        ("7", "scores.parquet", r"must have a JSON object on each line: got TypeError.* in row 1"),
        ("[7]", "scores.parquet", r"must have a JSON object on each line: got TypeError\('list'\) in row 1"),
        ("{}", "scores.parquet", r"must have each column of the package: got none of 'city' in row 1, counted from 0;"),
        ("", "scores.csv", r"output must be Parquet for a list of predictions per user: got .*scores.csv; rename it"),
    ],
)
def test_what_cannot_be_scored_is_said(
    served: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str, output: str, message: str
) -> None:
    (tmp_path / "rows.jsonl").write_text(f"{json.dumps(draw(2, 1)[1])}\n{line}")
    source, target = (str(tmp_path / name) for name in ("rows.jsonl", output))
    assert main(["predict", str(served), source, "--output", target]) == BAD_ARGUMENTS
    assert re.search(message, capsys.readouterr().err)
