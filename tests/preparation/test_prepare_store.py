"""Raw files and prepared folders in an object store that speaks S3, shared by several ranks."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import requests
from iopath.common.file_io import g_pathmgr

from dlrm_torchrec.datasets.prepared.files import join
from dlrm_torchrec.datasets.prepared.manifest import Manifest
from dlrm_torchrec.preparation.readers.paths import files_of
from dlrm_torchrec.preparation.readers.tables import Form, head
from dlrm_torchrec.preparation.work.recorded_work import FOLDER
from tests.preparation import criteo_files

ROOT = Path(__file__).parents[2]
DAYS, ROWS = 12, 150


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """A bucket with Criteo's days, in a server of this test."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    url = f"http://127.0.0.1:{port}"
    keys = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_DEFAULT_REGION": "us-east-1"}
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in ({"AWS_ENDPOINT_URL": url} | keys).items():
                patch.setenv(name, value)
            _wait_for(url)
            assert requests.put(f"{url}/clicks", timeout=10).ok
            for day in range(DAYS):
                with g_pathmgr.open(f"s3://clicks/raw/day_{day}", "wb") as file:
                    file.write(criteo_files.content(np.random.default_rng(day), ROWS))
            yield "s3://clicks"
    finally:
        server.terminate()
        server.wait()


def _wait_for(url: str) -> None:
    for _ in range(300):
        try:
            requests.get(url, timeout=10)
            return
        except requests.ConnectionError:
            time.sleep(0.1)
    raise TimeoutError(url)


def contents(folder: str) -> dict[str, bytes]:
    """All files of a prepared folder, by their path in it."""
    found: dict[str, bytes] = {}
    for name in g_pathmgr.ls(folder):
        if g_pathmgr.isdir(join(folder, name)):
            found |= {f"{name}/{inner}": data for inner, data in contents(join(folder, name)).items()}
        else:
            with g_pathmgr.open(join(folder, name), "rb") as file:
                found[name] = bytes(file.read())
    return found


def start(bucket: str, output: str, rank: int, size: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            *(sys.executable, "data/criteo/prepare.py", "1tb", "--input", f"{bucket}/raw", "--output", output),
            *("--workers", "1", "--rank_timeout_s", "15"),
        ],
        cwd=ROOT,
        env=os.environ | {"RANK": str(rank), "WORLD_SIZE": str(size), "OMP_NUM_THREADS": "1"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.mark.slow
def test_ranks_share_a_store_and_go_on_after_one_was_killed(bucket: str) -> None:
    one, many = f"{bucket}/one", f"{bucket}/many"
    ranks = [start(bucket, many, rank, 4) for rank in range(4)]
    while not g_pathmgr.exists(join(many, FOLDER, "count-00002.json")):
        assert all(rank.poll() is None for rank in ranks)
    ranks[2].kill()
    said = [rank.communicate(timeout=100)[1] for rank in ranks]
    assert not g_pathmgr.exists(f"{many}/dataset.json")
    assert "rank 2 must give a sign of life" in said[0], said
    again = [start(bucket, many, rank, 4) for rank in range(4)]
    said = [rank.communicate(timeout=100)[1] for rank in again]
    assert [rank.returncode for rank in again] == [0] * 4, said
    alone = start(bucket, one, 0, 1)
    assert f"{(DAYS - 1) * ROWS:,} train" in alone.communicate(timeout=100)[0]
    assert contents(many) == contents(one)
    assert {path.split("/")[0] for path in contents(many)} == {
        *("train", "val", "test", "vocab", "dataset.json", "quarantine.tsv", "report.json"),
    }
    assert Manifest.load(many).splits["train"].rows == (DAYS - 1) * ROWS


def test_folders_and_patterns_of_a_store_are_read(bucket: str) -> None:
    assert files_of(f"{bucket}/raw") == [f"{bucket}/raw/day_{day}" for day in range(DAYS)]
    assert files_of(f"{bucket}/r*/day_1?") == [f"{bucket}/raw/day_{day}" for day in range(10, DAYS)]
    found = head(f"{bucket}/raw/day_*", Form(names=tuple(map(str, range(40)))), 500)
    assert [len(column) for column in found.values()] == [500] * 40
