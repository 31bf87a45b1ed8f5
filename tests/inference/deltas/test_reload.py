"""Deltas that meet a full reload: one comes after the other, and no answer mixes versions."""

from __future__ import annotations

import asyncio
import random
import shutil
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dlrm_torchrec.inference.encoder import Inputs
from dlrm_torchrec.inference.loading import PackageError
from dlrm_torchrec.inference.predictor import Predictor
from dlrm_torchrec.inference.sequences.history_encoder import HistoryInputs
from dlrm_torchrec.inference.serving.app import SHORT_BODY_BYTES, Service
from dlrm_torchrec.inference.serving.limits import ServingConfig
from dlrm_torchrec.inference.serving.models import Models, Served
from tests.inference.deltas.test_live import REQUESTS, Days, answers, post
from tests.inference.serving.served import JSON, Server, as_json


@pytest.fixture(scope="module")
def days(tmp_path_factory: pytest.TempPathFactory) -> Days:
    return Days(tmp_path_factory.mktemp("days"), days=5, full_every=2)


def put(days: Days, day: int, folder: Path) -> None:
    """Let the full package of a day lie in ``folder``, with all deltas beside its files."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(days.folder.parent / f"full-{day}", folder)
    for each in days.folder.glob("delta-*"):
        shutil.copytree(each, folder / each.name)


@pytest.fixture
def folder(days: Days, tmp_path: Path) -> Path:
    put(days, 0, tmp_path / "served")
    return tmp_path / "served"


def in_service(folder: Path, work: Callable[[Service], Awaitable[None]]) -> None:
    """Run ``work`` with the parts of a server that has loaded ``folder``, in this process."""

    async def run() -> None:
        service = Service(folder, ServingConfig())
        batches = asyncio.create_task(service.batcher.run())
        await service.models.load()
        await work(service)
        batches.cancel()
        with suppress(asyncio.CancelledError):
            await batches

    asyncio.run(run())


def version(served: Served) -> int:
    number: int = served.predictor.manifest["version"]
    return number


async def outcome(change: Awaitable[Served]) -> int | str:
    """The version that a change led to, or why it was refused."""
    try:
        return version(await change)
    except PackageError as error:
        return str(error)


def test_what_begins_first_ends_first(days: Days, folder: Path) -> None:
    async def work(service: Service) -> None:
        models: Models = service.models
        both = await asyncio.gather(outcome(models.apply(days.delta(1))), outcome(models.load()))
        assert list(both) == [1, 0]
        assert not models.description()["serving"]["can_roll_back"]
        both = await asyncio.gather(outcome(models.load()), outcome(models.apply(days.delta(1))))
        assert list(both) == [0, 1]
        assert models.description()["serving"]["can_roll_back"]
        put(days, 2, folder)
        _, refused = await asyncio.gather(outcome(models.load()), outcome(models.apply(days.delta(2))))
        assert refused == "delta must be new: got version 2, which this package has already; leave it out"
        both = await asyncio.gather(outcome(models.apply(days.delta(3))), outcome(models.load()))
        assert list(both) == [3, 2]
        back, early = await asyncio.gather(outcome(models.roll_back()), outcome(models.apply(days.delta(5))))
        assert "version before must be in memory" in str(back)
        assert "delta must follow version 2: got version 5; apply every version once" in str(early)
        assert models.served is not None
        assert models.served.predictor.manifest["fingerprint"] == days.fingerprints[2]

    in_service(folder, work)


def test_values_read_before_a_delta_and_a_reload_are_read_again(
    days: Days, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows that a first version knew have been overwritten, although what is served has rows of its own."""
    number = max(range(REQUESTS), key=lambda each: len(as_json(days.values[each])))
    body = as_json(days.values[number])
    body += b" " * (SHORT_BODY_BYTES - len(body) + 1)  # read in a thread
    has_read, may_go_on = threading.Event(), threading.Event()

    async def work(service: Service) -> None:
        encoded: Callable[..., Inputs | HistoryInputs] = service.encoded

        def slowly(predictor: Predictor, *rest: Any) -> Inputs | HistoryInputs:
            inputs = encoded(predictor, *rest)
            has_read.set()
            assert may_go_on.wait(60)
            return inputs

        monkeypatch.setattr(service, "encoded", slowly)
        asked = asyncio.create_task(service._answer(JSON, body, lambda _: None))
        await asyncio.to_thread(has_read.wait, 60)
        await service.models.apply(days.delta(1))
        await service.models.load()
        may_go_on.set()
        predictor, _, answer = await asked
        assert predictor.manifest["version"] == 0
        np.testing.assert_allclose(answer.predictions[:, 0], days.expected[0][number], rtol=1e-5)

    in_service(folder, work)


@pytest.fixture
def server(folder: Path) -> Iterator[Server]:
    started = Server(folder).wait()
    yield started
    assert started.stop()[0] == 0


def test_reloads_and_deltas_at_any_moment_under_load(days: Days, folder: Path, server: Server) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    draw, going, current = random.Random(seed), [True], 0

    def later(seconds: float, *what: Any) -> tuple[int, dict[str, Any]]:
        time.sleep(seconds)
        return post(server, *what)

    with ThreadPoolExecutor(8) as clients:
        asked = [clients.submit(answers, server, days, number, going) for number in range(3)]
        try:
            for _ in range(12):
                full = draw.choice([0, 2, 4])
                put(days, full, folder)
                delta = draw.choice([current + 1, full + 1, draw.randint(1, 5)])
                delta = min(delta, 5)
                path = folder / f"delta-{delta:04}"
                applying = clients.submit(later, draw.uniform(0, 0.05), "/delta", path)
                status, answer = later(draw.uniform(0, 0.05), "/reload")
                assert (status, answer.get("version")) == (200, full), answer
                status, answer = applying.result()
                if status == 200:
                    assert answer["version"] == delta
                    assert delta in (current + 1, full + 1)
                else:
                    assert status == 409
                    assert answer["error"].startswith(("delta must follow version", "delta must be new: got version"))
                found = server.metrics()["dlrm_package_version"]
                assert found == full or (status == 200 and found == delta == full + 1)
                current = int(found)
        finally:
            going.clear()
        assert all(each.result() for each in asked)
