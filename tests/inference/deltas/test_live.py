"""A server under load through many deltas, and what it refuses."""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dlrm_torchrec.inference.deltas.delta import DeltaError
from dlrm_torchrec.inference.deltas.live import prepare_update
from dlrm_torchrec.inference.predictor import Predictor
from dlrm_torchrec.inference.publishing import publish
from tests.inference.deltas.evolving import Evolving
from tests.inference.deltas.test_offline import damage
from tests.inference.serving.served import JSON, Server, as_json

DAYS, REQUESTS = 50, 6


class Days:
    """Published versions of a model, the answers of each to the same requests, and what asks for them."""

    def __init__(self, folder: Path, days: int = DAYS, full_every: int = 25) -> None:
        model = Evolving(8, words=60, static=False)
        self.folder = folder / "all"
        self.values = [model.columns(seed, 1 + 7 * seed) for seed in range(REQUESTS)]
        for _ in range(days + 1):
            parts = model.parts(folder) | {
                "window": f"day {model.day}",
                "trained_until": "2024-05-01",
                "full_every": 10,
            }
            publish(self.folder, model.program(), model.spec(), **parts)
            if model.day % full_every == 0:
                model.write(folder / f"full-{model.day}")
            model.next_day()
        predictor = Predictor.load(self.folder / "base-0000")
        self.expected, self.fingerprints = [self._answers(predictor)], [predictor.manifest["fingerprint"]]
        for day in range(1, days + 1):
            update = prepare_update(predictor, self.delta(day))
            update.write()
            predictor = update.predictor
            self.expected.append(self._answers(predictor))
            self.fingerprints.append(predictor.manifest["fingerprint"])
            if (
                day % full_every == 0
            ):  # rows in place are those of the full package, and undo brings the rows before back
                full = self._answers(Predictor.load(folder / f"full-{day}"))
                assert all(map(np.array_equal, full, self.expected[day]))

    def delta(self, day: int) -> Path:
        return self.folder / f"delta-{day:04}"

    def _answers(self, predictor: Predictor) -> list[Any]:
        return [predictor(values).probabilities for values in self.values]


@pytest.fixture(scope="module")
def days(tmp_path_factory: pytest.TempPathFactory) -> Days:
    return Days(tmp_path_factory.mktemp("days"))


@pytest.fixture
def server(days: Days, tmp_path: Path) -> Iterator[Server]:
    """One that serves a published folder with the first version, in ``tmp_path``."""
    shutil.copytree(days.folder / "base-0000", tmp_path / "published/base-0000")
    started = Server(tmp_path / "published").wait()
    yield started
    code, _, _ = started.stop()
    assert code == 0


def post(server: Server, path: str, delta: Path | None = None) -> tuple[int, dict[str, Any]]:
    status, body = server.ask("POST", path, None if delta is None else json.dumps({"path": str(delta)}))
    return status, json.loads(body)


def answers(server: Server, days: Days, first: int, going: list[bool]) -> list[int]:
    """Asks until ``going`` is empty; each answer must be that of the version which it names. Returns the versions."""
    connection, seen, number = server.connect(), [], first
    while going:
        number = (number + 1) % REQUESTS
        connection.request("POST", "/predict", as_json(days.values[number]), {"Content-Type": JSON})
        response = connection.getresponse()
        body = json.loads(response.read())
        assert response.status == 200, body
        version = int(response.headers["Package-Version"])
        assert response.headers["Package-Fingerprint"] == days.fingerprints[version]
        np.testing.assert_allclose(body["probabilities"], days.expected[version][number], rtol=1e-5)
        seen.append(version)
    connection.close()
    return seen


def test_versions_differ_by_more_than_is_tolerated(days: Days) -> None:
    for old, new in zip(days.expected, days.expected[1:], strict=False):
        assert all(np.abs(after / before - 1).max() > 1e-3 for before, after in zip(old, new, strict=True))


def test_fifty_deltas_under_load(days: Days, server: Server, tmp_path: Path) -> None:
    """By all three ways, with refusals and rollbacks in between: no error and no mixed version."""
    going, published = [True], tmp_path / "published"
    with ThreadPoolExecutor(6) as clients:
        asked = [clients.submit(answers, server, days, number, going) for number in range(4)]
        try:
            for day in range(1, DAYS + 1):
                shutil.copytree(days.delta(day), published / f"delta-{day:04}")
                way = day % 3
                if way == 0:
                    server.process.send_signal(signal.SIGHUP)
                    assert server.process.stdout is not None
                    assert server.process.stdout.readline() == f"reload: serving evolving version {day}\n"
                else:
                    told = (
                        post(server, "/reload") if way == 1 else post(server, "/delta", published / f"delta-{day:04}")
                    )
                    assert told == (200, {"package": "evolving", "version": day})
                if day % 10 == 5:
                    assert post(server, "/delta", published / f"delta-{day:04}")[0] == 409
                    assert post(server, "/rollback") == (200, {"package": "evolving", "version": day - 1})
                    assert post(server, "/rollback")[0] == 409
                    together = [clients.submit(post, server, "/reload") for _ in range(2)]
                    assert [each.result()[1]["version"] for each in together] == [day, day]
                time.sleep(0.01)
        finally:
            going.clear()
        seen = [each.result() for each in asked]
    assert len({version for each in seen for version in each}) > DAYS / 2
    counted = server.metrics()
    assert counted['dlrm_deltas_total{outcome="applied"}'] == DAYS + 5
    assert counted['dlrm_deltas_total{outcome="rolled back"}'] == 5
    assert counted["dlrm_package_version"] == DAYS
    assert counted['dlrm_requests_total{code="200",path="/predict"}'] == sum(map(len, seen))
    state = json.loads(server.ask("GET", "/package")[1])["serving"]
    assert (state["loaded"], state["deltas"]) == (days.fingerprints[0], list(range(1, DAYS + 1)))
    assert abs(time.time() - 1714521600 - state["age_s"]) < 60


def test_what_is_refused_changes_nothing(days: Days, server: Server, tmp_path: Path) -> None:
    published = tmp_path / "published"
    for day in (1, 2):
        shutil.copytree(days.delta(day), published / f"delta-{day:04}")
    shutil.copytree(days.delta(1), published / "damaged")
    damage(published / "damaged/tables/word.rows.npy")
    shutil.copytree(days.delta(1), published / "other")
    facts = json.loads((published / "other/delta.json").read_text())
    (published / "other/delta.json").write_text(json.dumps(facts | {"predecessor": "0" * 32}))
    for path, status, reason in (
        (published / "delta-0002", 409, "delta must follow version 0: got version 2; apply every version once"),
        (published / "damaged", 409, "word.rows.npy must have sha256"),
        (published / "other", 409, "delta must be made from package"),
        (published / "none", 409, "must hold a delta.json"),
        (days.delta(1), 403, "a delta must lie in the served folder: got "),
        (published / ".." / ".." / "delta", 403, "a delta must lie in the served folder: got "),
    ):
        found, answer = post(server, "/delta", path)
        assert (found, reason in answer["error"]) == (status, True), answer
    assert server.ask("POST", "/delta", b"[]")[0] == 400
    assert post(server, "/rollback")[0] == 409
    values = as_json(days.values[3])
    assert np.allclose(server.predict(values)[1]["probabilities"], days.expected[0][3], rtol=1e-5)
    assert post(server, "/reload") == (200, {"package": "evolving", "version": 2})
    assert np.allclose(server.predict(values)[1]["probabilities"], days.expected[2][3], rtol=1e-5)
    shutil.rmtree(published / "delta-0001")
    assert post(server, "/reload")[0] == 409
    assert server.metrics()["dlrm_package_version"] == 2


def test_a_server_starts_at_the_newest_version_and_a_new_base_needs_no_reload(days: Days, tmp_path: Path) -> None:
    folder = tmp_path / "published"
    for path in days.folder.iterdir():
        if int(path.name[-4:]) <= 25:
            shutil.copytree(path, folder / path.name)
    server = Server(folder)
    try:
        assert server.process.stdout is not None
        assert server.process.stdout.readline().startswith("serving evolving version 25 at http")
        shutil.copytree(days.folder.parent / "full-25", folder / "base-0025")
        shutil.copytree(days.delta(26), folder / "delta-0026")
        server.process.send_signal(signal.SIGHUP)
        assert server.process.stdout.readline() == "reload: serving evolving version 26\n"
    finally:
        assert server.stop()[0] == 0


def test_undo_brings_every_byte_back_and_room_is_limited(days: Days, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = Predictor.load(days.folder / "base-0000")
    before = {name: rows.copy() for name, rows in predictor.stored.rows.items()}
    update = prepare_update(predictor, days.delta(1))
    update.write()
    assert any(not np.array_equal(rows, before[name]) for name, rows in predictor.stored.rows.items())
    update.undo()
    grown = len(np.load(days.folder / "base-0000/tables/word.npy"))
    for name, rows in predictor.stored.rows.items():
        kept = grown if name == "word" else len(rows)  # what follows is never read
        assert np.array_equal(rows[:kept], before[name][:kept])
    monkeypatch.setattr("dlrm_torchrec.inference.stored_rows.ROOM", 1)
    monkeypatch.setattr("dlrm_torchrec.inference.stored_rows.SPARE_ROWS", 0)
    with pytest.raises(
        DeltaError, match=r"table 'word' must have at most 62 rows in this memory: got \d+; load a full"
    ):
        prepare_update(Predictor.load(days.folder / "base-0000"), days.delta(1))
