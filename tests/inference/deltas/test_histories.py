"""Deltas and packages of a model of histories, in a server that is asked meanwhile."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from dlrm_torchrec.inference.deltas.published import Published
from dlrm_torchrec.inference.publishing import publish
from dlrm_torchrec.inference.scoring import script
from dlrm_torchrec.inference.sequences.scorer import SequenceScorer
from dlrm_torchrec.inference.tables.ids import serve_id_tables
from dlrm_torchrec.inference.tables.serve import table_weights
from tests.inference.deltas.test_live import REQUESTS, Days, answers, post
from tests.inference.sequences.histories import PLAIN, batch_of, columns, draw, write_vocabularies
from tests.inference.sequences.test_packages import SAMPLES, trained
from tests.inference.serving.served import Server

LAST = 2


class DaysOfHistories(Days):
    """The same of an HSTU, whose expected answers are the trained model's; each request is for one user."""

    def __init__(self, folder: Path) -> None:
        rows = draw(REQUESTS, 5)
        self.folder = folder / "all"
        self.values = [columns([row]) for row in rows]
        self.expected = []
        for day in range(LAST + 1):
            model, tables = trained("paper", "quotient_remainder")
            weights = table_weights(tables)
            for changed in range(1, day + 1):
                torch.manual_seed(changed)
                dense = [each for name, each in model.named_parameters() if "head" in name]
                with torch.no_grad():
                    for each in (*dense, *(weight[:20] for weight in weights.values())):
                        each.add_(torch.randn_like(each), alpha=0.5)
            with torch.no_grad():
                scores = [torch.sigmoid(model(batch_of([row], SAMPLES, PLAIN))).T.tolist() for row in rows]
            self.expected.append(scores)
            served = serve_id_tables(
                model, tables, dict.fromkeys(weights, "fp32"), [each.name for each in PLAIN.sparse]
            )
            publish(
                self.folder, script(SequenceScorer(served, PLAIN)), PLAIN, vocabularies=write_vocabularies(folder),
                model_facts={}, metrics={}, samples=vars(SAMPLES), window=f"day {day}", full_every=LAST,
            )  # fmt: skip
        published = Published.read(self.folder)
        self.fingerprints = [published.package(day)["fingerprint"] for day in range(LAST + 1)]


@pytest.fixture(scope="module")
def days(tmp_path_factory: pytest.TempPathFactory) -> DaysOfHistories:
    return DaysOfHistories(tmp_path_factory.mktemp("days"))


@pytest.fixture
def server(days: DaysOfHistories, tmp_path: Path) -> Iterator[Server]:
    """One that serves a published folder with the first version, in ``tmp_path``."""
    shutil.copytree(days.folder / "base-0000", tmp_path / "published/base-0000")
    started = Server(tmp_path / "published").wait()
    yield started
    assert started.stop()[0] == 0


def test_a_server_takes_over_days_of_histories(days: DaysOfHistories, server: Server, tmp_path: Path) -> None:
    def add(name: str) -> Path:
        return Path(shutil.copytree(days.folder / name, tmp_path / "published" / name))

    def serves(version: int) -> None:
        assert server.metrics()["dlrm_package_version"] == version

    for old, new in pairwise(days.expected):  # by more than ``answers`` tolerates
        assert all(np.abs(np.divide(after, before) - 1).max() > 1e-3 for before, after in zip(old, new, strict=True))
    going = [True]
    with ThreadPoolExecutor(3) as clients:
        asked = [clients.submit(answers, server, days, number, going) for number in range(3)]
        try:
            add("delta-0001")
            assert post(server, "/reload") == (200, {"package": PLAIN.name, "version": 1})
            serves(1)
            assert post(server, "/delta", add("delta-0002"))[1]["version"] == 2
            serves(2)
            assert post(server, "/rollback")[1]["version"] == 1
            serves(1)
            add("base-0002")  # a full package, which needs no deltas
            assert post(server, "/reload")[1]["version"] == 2
            serves(2)
            assert post(server, "/delta", tmp_path / "published/delta-0002")[0] == 409
        finally:
            going.clear()
        seen = {version for each in asked for version in each.result()}
    assert len(seen) > 1
