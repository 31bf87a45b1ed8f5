"""Preparations that end before their time: what they leave, what they say, and that the same command finishes them."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from dlrm_torchrec.datasets.prepared import files
from dlrm_torchrec.datasets.prepared.manifest import Manifest
from dlrm_torchrec.preparation import prepare as prepare_module
from dlrm_torchrec.preparation.prepare import Source, prepare
from dlrm_torchrec.preparation.work.recorded_work import RecordedWork
from dlrm_torchrec.preparation.work.units import Unit
from dlrm_torchrec.schema import DatasetSpec
from tests.preparation.prepared_folders import HASHED, MIXED, contents, write_raw

OPTIONS: dict[str, Any] = {"unit_bytes": 40_000, "row_group_rows": 100}


def start(call: Callable[[], object]) -> multiprocessing.context.ForkProcess:
    """A process that makes a call; it has no modules to import first."""
    process = multiprocessing.get_context("fork").Process(target=call)
    process.start()
    return process


def kill_at_random(
    spec: DatasetSpec, sources: Sequence[Source], output: Path, kills: int, seconds: float, seed: int, workers: int
) -> None:
    """Begin a preparation again and again, and kill it, most often before its end."""
    moment = random.Random(seed)
    for _ in range(kills):
        process = start(lambda: prepare(spec, sources, str(output), workers=workers, **OPTIONS))
        time.sleep(moment.uniform(0, seconds))
        process.kill()
        process.join()


def expect_same_end(tmp_path: Path, spec: DatasetSpec, workers: int, kills: int, seed: int, rows: int) -> None:
    sources, output = write_raw(tmp_path, rows), tmp_path / "killed"
    begin = time.monotonic()
    manifest = prepare(spec, sources, str(tmp_path / "whole"), workers=workers, **OPTIONS)
    kill_at_random(spec, sources, output, kills, time.monotonic() - begin, seed, workers)
    if (output / "dataset.json").exists():  # the last kill came too late
        assert Manifest.load(str(output)) == manifest
        shutil.rmtree(output / "work", ignore_errors=True)
    else:
        assert prepare(spec, sources, str(output), workers=workers, **OPTIONS) == manifest
    assert contents(output) == contents(tmp_path / "whole")


@pytest.mark.parametrize(("spec", "workers"), [(MIXED, 2), (MIXED, 1)])
def test_a_killed_preparation_ends_like_an_undisturbed_one(tmp_path: Path, spec: DatasetSpec, workers: int) -> None:
    expect_same_end(tmp_path, spec, workers, kills=3, seed=workers, rows=1200)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("spec", "workers"), [(HASHED, 2), (MIXED, 2), (MIXED, 1)])
def test_ten_kills(tmp_path: Path, spec: DatasetSpec, workers: int, seed: int) -> None:
    expect_same_end(tmp_path, spec, workers, kills=10, seed=seed, rows=6000)


class InterruptedByTestError(Exception):
    pass


@pytest.fixture
def unfinished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, list[Source]]:
    """A folder of which all units are done, but which was interrupted before ``dataset.json``; and its sources."""
    sources, output = write_raw(tmp_path), tmp_path / "out"

    def interrupt(*_: object, **__: object) -> None:
        raise InterruptedByTestError

    with monkeypatch.context() as patch:
        patch.setattr(prepare_module, "finish", interrupt)
        with pytest.raises(InterruptedByTestError):
            prepare(MIXED, sources, str(output), **OPTIONS)
    assert not (output / "dataset.json").exists()
    return output, sources


def times(output: Path) -> dict[str, int]:
    return {
        str(path.relative_to(output)): path.stat().st_mtime_ns
        for path in output.rglob("*")
        if path.suffix in (".parquet", ".arrow", ".npy")
    }


def test_finished_parts_are_kept_unless_they_are_damaged(tmp_path: Path, unfinished: tuple[Path, list[Source]]) -> None:
    output, sources = unfinished
    before = times(output)
    harm: dict[str, Callable[[Path], object]] = {
        "train/part-00001-000.parquet": lambda path: path.write_bytes(path.read_bytes()[:-1]),
        "train/part-00002-000.parquet": lambda path: path.unlink(),
        "train/part-00003-000.parquet": lambda path: path.write_bytes(path.read_bytes().replace(b"PAR1", b"par1")),
        "vocab/cat_3.parquet": lambda path: path.write_bytes(b""),
        "work/counts-00004-000.arrow": lambda path: path.unlink(),
    }
    for name, do in harm.items():
        do(output / name)
    (output / "work/write-00005.json").write_text("{")
    (output / "train/part-00009-000.parquet.0a1b2c3d.partial").write_bytes(b"cut off")
    again: dict[str, int] = {}
    remove = RecordedWork.remove
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RecordedWork, "remove", lambda work: (again.update(times(output)), remove(work)))
        prepare(MIXED, sources, str(output), **OPTIONS)
    redone = {name for name, when in again.items() if before[name] != when}
    with_the_vocabulary = {name for name in before if name.startswith("work/table-001")}
    assert redone == {*harm, "train/part-00005-000.parquet"} | with_the_vocabulary
    prepare(MIXED, sources, str(tmp_path / "whole"), **OPTIONS)
    assert contents(output) == contents(tmp_path / "whole")


def test_another_command_does_not_go_on(tmp_path: Path, unfinished: tuple[Path, list[Source]]) -> None:
    output, sources = unfinished
    before = contents(output)
    others: dict[str, Callable[[], object]] = {
        "spec": lambda: prepare(HASHED, sources, str(output), **OPTIONS),
        "sources": lambda: prepare(MIXED, sources[:-1], str(output), **OPTIONS),
        "row_group_rows, seed": lambda: prepare(
            MIXED, sources, str(output), unit_bytes=40_000, row_group_rows=99, seed=5
        ),
    }
    for changed, other in others.items():
        with pytest.raises(ValueError, match=f"must be continued with the command that began it: got other {changed};"):
            other()
    assert contents(output) == before
    Path(sources[0].path).write_bytes(Path(sources[0].path).read_bytes().replace(b"\t", b"\t", 1) + b"\n")
    with pytest.raises(ValueError, match="got other sources;"):
        prepare(MIXED, sources, str(output), **OPTIONS)
    for folder in (output, tmp_path / "new"):
        prepare(HASHED, sources, str(folder), overwrite=True, **OPTIONS)
    assert contents(output) == contents(tmp_path / "new")


class FullDisk:
    """Stands in for a disk that has room for so many bytes, whoever writes them."""

    def __init__(self, room: int) -> None:
        self._room, self._write = multiprocessing.Value("q", room), files.NewFile.write

    def write(self, file: files.NewFile, data: Any) -> int:
        with self._room.get_lock():
            self._room.value -= memoryview(data).nbytes
            if self._room.value < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self._write(file, data)


@pytest.mark.parametrize(("room", "workers"), [(0, 1), (50_000, 2), (200_000, 1), (200_000, 2)])
def test_a_full_disk_is_said_and_leaves_finished_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int, workers: int
) -> None:
    sources, output = write_raw(tmp_path), tmp_path / "out"
    disk = FullDisk(room)
    with monkeypatch.context() as patch:
        patch.setattr(files.NewFile, "write", lambda file, data: disk.write(file, data))
        with pytest.raises(OSError, match=r"the disk of .*/out must have room .* got 'No space left on device'; make"):
            prepare(MIXED, sources, str(output), workers=workers, **OPTIONS)
    left = contents(output)
    assert "dataset.json" not in left
    assert not [name for name in left if name.endswith(".partial")]
    assert len([name for name in left if name.startswith("work/count")]) >= (room > 0)
    for name in left:
        if name.startswith("work/") and name.endswith(".json"):
            json.loads(left[name])
    prepare(MIXED, sources, str(output), workers=workers, **OPTIONS)
    prepare(MIXED, sources, str(tmp_path / "whole"), **OPTIONS)
    assert contents(output) == contents(tmp_path / "whole")


def test_a_worker_that_the_system_kills_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources, output = write_raw(tmp_path), tmp_path / "out"
    main, pieces = os.getpid(), Unit.pieces

    def die(unit: Unit, report: Any) -> Any:
        if unit.number == 3 and os.getpid() != main:
            os.kill(os.getpid(), signal.SIGKILL)
        return pieces(unit, report)

    with monkeypatch.context() as patch:
        patch.setattr(Unit, "pieces", die)
        with pytest.raises(
            OSError, match=r"worker \d .* finished rows \d+ to \d+ of .*/a: it was killed by SIGKILL; if"
        ):
            prepare(HASHED, sources, str(output), workers=2, **OPTIONS)
    assert "work/write-00000.json" in contents(output)
    prepare(HASHED, sources, str(output), workers=2, **OPTIONS)
    prepare(HASHED, sources, str(tmp_path / "whole"), **OPTIONS)
    assert contents(output) == contents(tmp_path / "whole")


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A temporary folder that every user may enter."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize("begun", [False, True])
def test_a_folder_that_cannot_be_written_is_said(open_folder: Path, begun: bool) -> None:
    sources, output = write_raw(open_folder, 100), open_folder / "out"
    output.mkdir()
    if begun:
        (output / "quarantine.tsv").write_text("")
    output.chmod(0o555)
    said, here = multiprocessing.Pipe()

    def try_to_prepare() -> None:
        if os.geteuid() == 0:
            os.setuid(65534)  # root may write everywhere
        try:
            prepare(HASHED, sources, str(output), **OPTIONS)
        except OSError as error:
            here.send(str(error))

    process = start(try_to_prepare)
    process.join()
    assert said.poll()
    expected = f"output {output} must be a writable folder: got 'Permission denied'; change its permissions"
    assert said.recv().startswith(expected)
    assert [path.name for path in output.iterdir()] == ["quarantine.tsv"] * begun


def save_often(manifest: Manifest, folder: Path) -> None:
    for _ in range(300):
        manifest.save(str(folder))


def test_a_prepared_folder_stays_readable_while_its_manifest_is_replaced(tmp_path: Path) -> None:
    manifest = prepare(HASHED, write_raw(tmp_path, 800), str(tmp_path / "out"))
    process = start(lambda: save_often(manifest, tmp_path / "out"))
    loads = 0
    while process.is_alive():
        assert Manifest.load(str(tmp_path / "out")) == manifest
        loads += 1
    assert loads > 5
    assert process.exitcode == 0
