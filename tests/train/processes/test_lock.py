"""One run at a time in a run folder: races of real processes, deaths, hosts and stores without flock."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
from iopath.common.file_io import PathHandler, g_pathmgr

from dlrm_torchrec.train.processes import lock
from dlrm_torchrec.train.processes.holder import Holder, this_process
from dlrm_torchrec.train.processes.lock import RunLock
from tests.distributed import context

ROUNDS, RACERS = 20, 4


class Store(PathHandler):
    """``store://<local path>``: a store without flock and without creation of files that must not exist."""

    def _get_supported_prefixes(self) -> list[str]:
        return ["store://"]

    def _get_local_path(self, path: str, **_: object) -> str:
        return path.removeprefix("store://")

    def _open(self, path: str, mode: str = "r", **_: object) -> object:
        place = Path(self._get_local_path(path))
        return _Put(place) if "w" in mode else place.open(mode)

    def _exists(self, path: str, **_: object) -> bool:
        return Path(self._get_local_path(path)).exists()

    def _isdir(self, path: str, **_: object) -> bool:
        return Path(self._get_local_path(path)).is_dir()

    def _mkdirs(self, path: str, **_: object) -> None:
        Path(self._get_local_path(path)).mkdir(parents=True, exist_ok=True)

    def _rm(self, path: str, **_: object) -> None:
        Path(self._get_local_path(path)).unlink()


class _Put:
    """A file that is there, all of it, when it is closed."""

    def __init__(self, place: Path) -> None:
        self.place, self.content = place, b""

    def write(self, data: bytes) -> None:
        self.content += data

    def __enter__(self) -> _Put:
        return self

    def __exit__(self, *_: object) -> None:
        partial = self.place.with_name(f"{time.monotonic_ns()}.{os.getpid()}")
        partial.write_bytes(self.content)
        os.replace(partial, self.place)


def _be_quick() -> None:
    lock.BEAT_S, lock.WATCH_S, lock.SETTLE_S, lock.PATIENCE_S = 0.1, 1.0, 0.5, 0.4
    with suppress(KeyError):  # registered already
        g_pathmgr.register_handler(Store(), allow_override=False)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BEAT_S", "WATCH_S", "SETTLE_S", "PATIENCE_S"):
        monkeypatch.setattr(lock, name, getattr(lock, name))  # puts it back
    _be_quick()


def _race(folders: list[str], barrier: Barrier, link: Connection) -> None:
    _be_quick()
    outcomes = []
    for folder in folders:
        barrier.wait(60)
        try:
            held = RunLock(folder)
            outcomes.append("won")
        except ValueError as error:
            outcomes.append(str(error))
        barrier.wait(60)
        if outcomes[-1] == "won":
            held.release()
    link.send(outcomes)


@pytest.mark.parametrize(("prefix", "rounds"), [("", ROUNDS), ("store://", 5)])
def test_one_of_racing_processes_wins(tmp_path: Path, prefix: str, rounds: int) -> None:
    folders = [f"{prefix}{tmp_path}/{number}" for number in range(rounds)]
    barrier = context.Barrier(RACERS)
    links = [context.Pipe() for _ in range(RACERS)]
    racers = [context.Process(target=_race, args=(folders, barrier, far)) for _, far in links]
    for racer in racers:
        racer.start()
    outcomes = [near.recv() for near, _ in links]
    for racer in racers:
        racer.join()
    for number, outcome in enumerate(zip(*outcomes, strict=True)):
        assert sorted(text == "won" for text in outcome) == [False] * (RACERS - 1) + [True]
        winner = racers[outcome.index("won")].pid
        refusals = [text for text in outcome if text != "won"]
        assert all(f"run folder {folders[number]} must have one run at a time" in text for text in refusals)
        if not prefix:
            assert all(f"process {winner} on " in text for text in refusals)
    assert not list(tmp_path.glob("*/lock.json"))


def _hold(folder: str, link: Connection, then: str) -> None:
    _be_quick()
    held = RunLock(folder)
    link.send("held")
    if then.startswith("stop"):
        link.recv()
        held.stopping()
        link.send("stopping")
        link.poll(60 if then == "stop when told" else 1)
        held.release()
        os._exit(0)
    if then == "fork" and (child := os.fork()):
        link.send(child)
    time.sleep(600)


@pytest.fixture
def holders() -> Iterator[list[int]]:
    """Processes that a test started, to be killed."""
    pids: list[int] = []
    yield pids
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def wait_for_end(pid: int) -> None:
    deadline = time.monotonic() + 60
    with suppress(FileNotFoundError):
        while Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z":
            assert time.monotonic() < deadline
            time.sleep(0.02)


def start_holder(folder: str, pids: list[int], then: str = "") -> tuple[int, Connection]:
    near, far = context.Pipe()
    process = context.Process(target=_hold, args=(folder, far, then), daemon=True)
    process.start()
    assert near.recv() == "held"
    assert process.pid is not None
    pids.append(process.pid)
    return process.pid, near


@pytest.mark.parametrize("prefix", ["", "store://"])
def test_a_second_run_is_told_who_trains_and_a_dead_one_is_followed(
    tmp_path: Path, prefix: str, holders: list[int]
) -> None:
    folder, said = f"{prefix}{tmp_path}/run", list[str]()
    pid, _ = start_holder(folder, holders)
    with pytest.raises(
        ValueError,
        match=rf"one run at a time: got a second one beside process {pid} on \S+, there since \d{{4}}-\d\d-\d\d .*; "
        rf"wait for that run, stop it with `kill {pid}` there, or choose another --run-dir",
    ):
        RunLock(folder, said.append)
    os.kill(pid, signal.SIGKILL)
    wait_for_end(pid)
    held = RunLock(folder, said.append)
    assert f"took the lock of {folder} over from process {pid} on " in said[-1]
    held.release()


def test_a_forked_child_does_not_keep_the_lock(tmp_path: Path, holders: list[int]) -> None:
    pid, link = start_holder(str(tmp_path), holders, "fork")
    child = link.recv()
    os.kill(pid, signal.SIGKILL)
    holders[:] = [child]
    time.sleep(0.1)
    RunLock(str(tmp_path)).release()


@pytest.mark.parametrize("prefix", ["", "store://"])
def test_a_run_that_stops_is_waited_for(tmp_path: Path, prefix: str, holders: list[int]) -> None:
    folder, said = f"{prefix}{tmp_path}", list[str]()
    pid, link = start_holder(folder, holders, "stop")
    link.send("stop")
    assert link.recv() == "stopping"
    RunLock(folder, said.append).release()
    assert len(said) == 1
    assert f"waiting for process {pid} on " in said[0]


def test_a_run_that_has_removed_its_file_is_waited_for_however_long_it_took(
    tmp_path: Path, holders: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    read, start, vanished = RunLock._read, time.monotonic(), list[float]()

    def read_as_it_vanishes(self: RunLock) -> Holder | None:
        if not vanished and time.monotonic() > start + 1.5 * lock.PATIENCE_S:
            vanished.append(time.monotonic())
            link.send("end")
            return None
        return read(self)

    pid, link = start_holder(str(tmp_path), holders, "stop when told")
    link.send("stop")
    assert link.recv() == "stopping"
    monkeypatch.setattr(RunLock, "_read", read_as_it_vanishes)
    start, said = time.monotonic(), list[str]()
    held = RunLock(str(tmp_path), said.append)
    assert vanished
    assert f"waiting for process {pid} on " in said[0]
    held.release()


def foreign(**changes: object) -> Holder:
    """A holder on another host."""
    return replace(this_process(), token="other", host="far", kernel="far", **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("beats", [False, True])
def test_another_host_is_watched(tmp_path: Path, beats: bool) -> None:
    path, said, ended = tmp_path / "lock.json", list[str](), threading.Event()
    path.write_bytes(foreign().written())

    def beat() -> None:
        number = 0
        while beats and not ended.wait(0.1):
            number += 1
            path.write_bytes(foreign(beat=number).written())

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        if beats:
            with pytest.raises(ValueError, match=r"beside process \d+ on far, there since "):
                RunLock(str(tmp_path), said.append)
        else:
            RunLock(str(tmp_path), said.append).release()
            assert "took the lock" in said[-1]
        assert "watching for 1 s whether process" in said[0]
    finally:
        ended.set()
        thread.join()


def test_without_flock_the_process_number_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_descriptor: int, _operation: int) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "flock", refuse)
    path, said = tmp_path / "lock.json", list[str]()
    path.write_bytes(replace(this_process(), token="other").written())  # this process lives
    with pytest.raises(ValueError, match=f"beside process {os.getpid()} on "):
        RunLock(str(tmp_path), said.append)
    path.write_bytes(replace(this_process(), token="other", born=1).written())  # its number was another process's
    held = RunLock(str(tmp_path), said.append)
    assert json.loads(path.read_text())["pid"] == os.getpid()
    held.release()
    assert not path.exists()


@pytest.mark.parametrize(
    "content", [b"", b"\0" * 100, b"{", b"[" * 100_000, b"{}", b'{"pid": 1}', b"7", foreign(pid=-1).written()]
)
def test_a_damaged_file_does_not_lock(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "lock.json").write_bytes(content)
    RunLock(str(tmp_path)).release()
    assert list(tmp_path.iterdir()) == []


def test_what_a_file_says_reaches_no_terminal() -> None:
    assert foreign(program="\x1b[31m\n").described.endswith(r"(\x1b[31m\n)")


def test_a_second_lock_of_one_process_replaces_the_first(tmp_path: Path) -> None:
    first = RunLock(str(tmp_path))
    second = RunLock(f"{tmp_path}/")
    first.release()  # has no effect any more
    assert json.loads((tmp_path / "lock.json").read_text())["token"] == second._mine.token
    second.release()


def test_a_removed_file_is_written_again(tmp_path: Path, holders: list[int]) -> None:
    pid, _ = start_holder(str(tmp_path), holders)
    (tmp_path / "lock.json").unlink()
    time.sleep(1)
    with pytest.raises(ValueError, match=f"beside process {pid} on "):
        RunLock(str(tmp_path))


def test_a_run_whose_lock_another_has_ends(tmp_path: Path, holders: list[int]) -> None:
    pid, _ = start_holder(f"store://{tmp_path}", holders)
    (tmp_path / "lock.json").write_bytes(foreign().written())
    wait_for_end(pid)


def test_a_run_whose_folder_is_removed_ends(tmp_path: Path, holders: list[int]) -> None:
    pid, _ = start_holder(f"{tmp_path}/run", holders)
    shutil.rmtree(tmp_path / "run")
    wait_for_end(pid)
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_written_is_explained(tmp_path: Path) -> None:
    (tmp_path / "run").touch()
    with pytest.raises(ValueError, match=r"run folder \S+/run must be a folder that this process can write: got '"):
        RunLock(f"{tmp_path}/run")
