"""One folder prepared by several ranks, as torchrun and TorchX start them."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dlrm_torchrec.preparation.prepare import Source, prepare
from dlrm_torchrec.preparation.work.units import Unit
from dlrm_torchrec.schema import DatasetSpec
from tests.preparation import criteo_files
from tests.preparation.prepared_folders import HASHED, MIXED, contents, write_raw

ROOT = Path(__file__).parents[2]
OPTIONS: dict[str, Any] = {"unit_bytes": 40_000, "row_group_rows": 100}


class Rank:
    """A process that prepares as one rank of several; what it returned or why it failed is known at its end."""

    def __init__(
        self, rank: int, size: int, spec: DatasetSpec, sources: Sequence[Source], output: Path, **options: Any
    ):
        self._said, there = multiprocessing.Pipe()

        def run() -> None:
            os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size)}
            try:
                manifest = prepare(spec, sources, str(output), **(OPTIONS | options))
                there.send({name: split.rows for name, split in manifest.splits.items()})
            except (ValueError, OSError) as error:
                there.send(str(error))

        self.process = multiprocessing.get_context("fork").Process(target=run)
        self.process.start()

    def result(self) -> Any:
        self.process.join(60)
        assert not self.process.is_alive()
        return self._said.recv() if self._said.poll() else None


@pytest.mark.parametrize(("spec", "size", "workers"), [(HASHED, 3, 1), (MIXED, 2, 2)])
def test_ranks_write_the_folder_of_one_process(tmp_path: Path, spec: DatasetSpec, size: int, workers: int) -> None:
    sources = write_raw(tmp_path)
    manifest = prepare(spec, sources, str(tmp_path / "one"), **OPTIONS)
    ranks = [Rank(rank, size, spec, sources, tmp_path / "many", workers=workers) for rank in range(size)]
    rows = {name: split.rows for name, split in manifest.splits.items()}
    assert [rank.result() for rank in ranks] == [rows] * size
    assert contents(tmp_path / "many") == contents(tmp_path / "one")


def wait_for(path: Path, process: multiprocessing.process.BaseProcess) -> None:
    while not path.exists():
        assert process.is_alive()
        time.sleep(0.01)


def test_a_rank_that_dies_ends_the_others_and_the_same_command_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources, output = write_raw(tmp_path), tmp_path / "many"
    pieces = Unit.pieces
    with monkeypatch.context() as patch:

        def dawdle(unit: Unit, report: Any) -> Any:
            if os.environ.get("RANK") == "1" and unit.number > 4:
                time.sleep(100)
            return pieces(unit, report)

        patch.setattr(Unit, "pieces", dawdle)
        ranks = [Rank(rank, 2, MIXED, sources, output, workers=1, rank_timeout_s=2.0) for rank in range(2)]
        wait_for(output / "work/count-00003.json", ranks[1].process)
        ranks[1].process.kill()
        said = ranks[0].result()
    assert re.match(r"rank 1 must give a sign of life every 2 s: rank 0 got none; .* same command again", said), said
    assert not (output / "dataset.json").exists()
    again = [Rank(rank, 2, MIXED, sources, output) for rank in range(2)]
    assert all(isinstance(rank.result(), dict) for rank in again)
    prepare(MIXED, sources, str(tmp_path / "one"), **OPTIONS)
    assert contents(output) == contents(tmp_path / "one")


def test_a_rank_that_fails_tells_the_others_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources, output = write_raw(tmp_path), tmp_path / "many"
    pieces = Unit.pieces

    def fail(unit: Unit, report: Any) -> Any:
        if os.environ.get("RANK") == "2":
            raise ValueError("this file is odd")
        return pieces(unit, report)

    monkeypatch.setattr(Unit, "pieces", fail)
    ranks = [Rank(rank, 3, HASHED, sources, output, workers=1) for rank in range(3)]
    said = [rank.result() for rank in ranks]
    assert said[2] == "this file is odd"
    assert said[:2] == ["rank 2 failed: this file is odd"] * 2


def test_what_rank_0_finds_unfit_ends_all(tmp_path: Path) -> None:
    sources = write_raw(tmp_path)
    ranks = [Rank(rank, 2, HASHED, sources, tmp_path / "many", max_bad_share=0.0) for rank in range(2)]
    said = [rank.result() for rank in ranks]
    assert said[0].startswith("malformed rows must be at most 0.00% of all")
    assert said[1] == f"rank 0 failed: {said[0]}"


def test_ranks_with_different_commands_do_not_wait_forever(tmp_path: Path) -> None:
    sources = write_raw(tmp_path, 400)
    ranks = [
        Rank(rank, 2, spec, sources, tmp_path / "many", rank_timeout_s=1.0) for rank, spec in enumerate((HASHED, MIXED))
    ]
    said = [rank.result() for rank in ranks]
    assert said[0].startswith("rank 1 must give a sign of life every 1 s: rank 0 got none")
    assert re.match("rank 0 must begin to prepare .* within 1 s|output .* must be continued with the command", said[1])


def test_a_rank_without_its_group_says_so(tmp_path: Path) -> None:
    said = Rank(1, 2, HASHED, write_raw(tmp_path, 400), tmp_path / "out", rank_timeout_s=0.5).result()
    assert said.startswith(f"rank 0 must begin to prepare {tmp_path}/out within 0.5 s: got no sign of it; start all")


@pytest.mark.slow
def test_an_earlier_attempt_does_not_count(tmp_path: Path) -> None:
    sources, output = write_raw(tmp_path), tmp_path / "many"
    first = [Rank(rank, 2, MIXED, sources, output, workers=1) for rank in range(2)]
    wait_for(output / "work/vocabulary-00001.json", first[1].process)
    for rank in first:
        os.kill(rank.process.pid or 0, signal.SIGKILL)
        rank.process.join()
    if (output / "dataset.json").exists():
        pytest.fail("the first attempt was too fast to be interrupted; give it more rows")
    done = Rank(0, 2, MIXED, sources, output, rank_timeout_s=1.5)
    assert done.result().startswith("rank 1 must give a sign of life")  # though its files say it has done all its part
    again = [Rank(rank, 2, MIXED, sources, output) for rank in (1, 0)]
    assert all(isinstance(rank.result(), dict) for rank in again)
    prepare(MIXED, sources, str(tmp_path / "one"), **OPTIONS)
    assert contents(output) == contents(tmp_path / "one")


def command(folder: Path, output: str) -> list[str]:
    return ["data/criteo/prepare.py", "kaggle", "--input", f"{folder}/train.txt", "--output", f"{folder}/{output}"]


def write_criteo(folder: Path) -> None:
    (folder / "train.txt").write_bytes(criteo_files.content(np.random.default_rng(0), 2000))


def test_the_command_prepares_as_ranks(tmp_path: Path) -> None:
    write_criteo(tmp_path)
    processes = [
        subprocess.Popen(
            [sys.executable, *command(tmp_path, "two")],
            cwd=ROOT,
            env=os.environ | {"RANK": str(rank), "WORLD_SIZE": "2"},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=100) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert "1,715 train, 143 val, 142 test rows" in said[0][0]
    assert said[1] == ("", "")
    subprocess.run([sys.executable, *command(tmp_path, "one")], cwd=ROOT, check=True, capture_output=True)
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


@pytest.mark.slow
def test_torchx_prepares_as_ranks(tmp_path: Path) -> None:
    write_criteo(tmp_path)
    torchx = [str(Path(sys.executable).parent / "torchx"), "run", "dist.ddp", "-j", "1x2"]
    done = subprocess.run([*torchx, *command(tmp_path, "two")], cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    subprocess.run([sys.executable, *command(tmp_path, "one")], cwd=ROOT, check=True, capture_output=True)
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
