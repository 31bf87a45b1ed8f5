"""One run at a time in a run folder: ``lock.json`` says which process trains there, on which host and since when.

    self._lock = RunLock(folder, self.say)           # on rank 0, before it writes anything else into the folder
    world.at_end.callback(self._lock.release)        # when the run ends, with an error as well
    self._lock.release()                             # in finish, when all is written

Where the file system has flock, the kernel gives the lock to one process, and takes it back when that process dies. For
other hosts, and for stores without flock, the holder counts up a number in the file every ``BEAT_S`` seconds. Whoever
sees no change for ``WATCH_S`` seconds takes the lock over. No two clocks are compared.

A store such as ``s3://`` cannot create a file only where none is. There a new holder writes its name, waits
``SETTLE_S`` seconds and looks whether its name is still there. Two runs that start at the same moment may both pass if
writing takes longer than that. The one whose name was replaced ends itself at its next beat, within ``BEAT_S`` seconds.
A holder that could not beat for ``WATCH_S`` seconds, because its host stood still, ends itself likewise.
"""

from __future__ import annotations

import atexit
import errno
import fcntl
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from iopath.common.file_io import g_pathmgr

from dlrm_torchrec.train.processes.holder import Holder, this_process

NAME = "lock.json"
BEAT_S = 5.0
WATCH_S = 20.0
SETTLE_S = 2.0
STOPPING_S = 300.0  # the longest wait for a holder that saves and ends
PATIENCE_S = 2.0  # for a holder that has no name yet, or is just dying
_POLL_S = 0.2
_RECORD_BYTES = 1024  # of a file that is rewritten in place, so that a reader finds all of it or spaces
_WITHOUT_FLOCK = (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOLCK, errno.EINVAL)

_held: dict[str, RunLock] = {}  # of this process, by folder


def mark_stopping() -> None:
    """Let the next run wait for those of this process, which have been asked to save and end."""
    for lock in list(_held.values()):
        lock.stopping()


def say_on_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class RunLock:
    """The lock of a run folder, which this process holds until ``release`` or its death.

    A second lock on the same folder in one process replaces the first one, because a process trains one run at a time:
    the first was left by an error. Raises ValueError when another process holds the lock, or when the folder cannot be
    written.
    """

    def __init__(self, folder: str, say: Callable[[str], None] = say_on_stderr) -> None:
        self.folder, self._say = folder.rstrip("/"), say
        self._path = f"{self.folder}/{NAME}"
        if self.folder in _held:
            _held[self.folder].release()
        self._mine = this_process()
        self._descriptor: int | None = None  # of the file under flock
        self._mutex = threading.RLock()  # a signal handler may call ``stopping`` inside of ``release``
        self._ended = threading.Event()
        try:
            g_pathmgr.mkdirs(self.folder)
            self._acquire()
        except OSError as error:
            self._close()
            raise ValueError(
                f"run folder {self.folder} must be a folder that this process can write: got '{error}'; make room, "
                "change its permissions, or choose another --run-dir"
            ) from error
        except BaseException:
            self._close()
            raise
        _held[self.folder] = self
        atexit.register(self.release)
        threading.Thread(target=self._beat, name="lock", daemon=True).start()

    def stopping(self) -> None:
        """Say that this run saves and ends, so that the next one waits for it."""
        with self._mutex, suppress(OSError):
            if not self._ended.is_set():
                self._mine = replace(self._mine, stopping=True)
                self._write()

    def release(self) -> None:
        """Give the lock back; nothing if this process does not hold it."""
        with self._mutex:
            if self._ended.is_set() or self._mine.pid != os.getpid():  # a forked child has a copy of this object
                return
            self._ended.set()
            with suppress(OSError):
                if (holder := self._read()) is not None and holder.token == self._mine.token:
                    g_pathmgr.rm(self._path)  # while it is locked: a process that waits for this file looks again
            self._close()
        if _held.get(self.folder) is self:
            del _held[self.folder]
        atexit.unregister(self.release)

    def leave_to_parent(self) -> None:
        """In a forked child: close its copy of the file, which would keep the lock when the parent is dead."""
        self._close()

    def _acquire(self) -> None:
        start, told = time.monotonic(), set[str]()
        deadline = start + PATIENCE_S

        def tell(text: str) -> None:
            if text not in told:
                told.add(text)
                self._say(text)

        while True:
            free = self._flock()
            holder = self._read()
            if holder is None and free is not False:
                break
            if holder is not None and not self._lives(holder, tell, free=free):
                tell(f"took the lock of {self.folder} over from {holder.described}, which ended without giving it back")
                break
            self._close()
            now = time.monotonic()
            if holder is not None and holder.stopping:
                tell(f"waiting for {holder.described}, which saves and ends, to leave {self.folder}")
                deadline = min(now + PATIENCE_S, start + STOPPING_S)  # its file is gone a moment before its lock
            if now > deadline:
                raise ValueError(self._refusal(holder))
            time.sleep(_POLL_S)
        self._write()
        if self._descriptor is None:
            time.sleep(SETTLE_S)
            holder = self._read()
            if holder is None or holder.token != self._mine.token:
                raise ValueError(self._refusal(holder))

    def _refusal(self, holder: Holder | None) -> str:
        who = "another one" if holder is None else holder.described
        stop = "" if holder is None else f", stop it with `kill {holder.pid}` there"
        return (
            f"run folder {self.folder} must have one run at a time: got a second one beside {who}; "
            f"wait for that run{stop}, or choose another --run-dir"
        )

    def _flock(self) -> bool | None:
        """Whether this process got the file under flock; None if there is no flock here."""
        if "://" in self._path:
            return None
        while True:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.exists(self._path) and os.path.samestat(os.fstat(descriptor), os.stat(self._path)):
                    self._descriptor = descriptor
                    return True
                os.close(descriptor)  # its holder removed it between the two lines above
            except OSError as error:
                os.close(descriptor)
                if isinstance(error, FileNotFoundError):
                    continue
                if error.errno in _WITHOUT_FLOCK:
                    return None
                if isinstance(error, BlockingIOError):
                    return False
                raise

    def _lives(self, holder: Holder, tell: Callable[[str], None], *, free: bool | None) -> bool:
        if free is False:
            return True
        if holder.kernel == self._mine.kernel:
            return free is None and holder.is_running()
        tell(f"watching for {WATCH_S:.0f} s whether {holder.described} still trains in {self.folder}")
        deadline = time.monotonic() + WATCH_S
        while time.monotonic() < deadline:
            time.sleep(_POLL_S)
            seen = self._read()
            if seen is not None and (seen.token, seen.beat) != (holder.token, holder.beat):
                return True
        return False

    def _read(self) -> Holder | None:
        """What the file says; None if there is no file, or one that is empty or damaged."""
        if not g_pathmgr.exists(self._path):
            return None
        with suppress(FileNotFoundError), g_pathmgr.open(self._path, "rb") as file:
            return Holder.read(file.read())
        return None

    def _write(self) -> None:
        record = self._mine.written()
        if self._descriptor is not None:
            record = record.ljust(_RECORD_BYTES)
            os.pwrite(self._descriptor, record, 0)
            os.ftruncate(self._descriptor, len(record))  # what was there before may be longer, if it was damaged
            return
        target = self._path if "://" in self._path else f"{self._path}.{self._mine.token}"
        with g_pathmgr.open(target, "wb") as file:
            file.write(record)
        if target != self._path:
            os.replace(target, self._path)

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_S):
            with self._mutex, suppress(OSError):  # a store may be out of reach for a while
                if self._ended.is_set():
                    return
                holder = self._read()
                if (holder is None and not self._found_again()) or (holder and holder.token != self._mine.token):
                    self._lost(holder)
                self._mine = replace(self._mine, beat=self._mine.beat + 1)
                self._write()

    def _found_again(self) -> bool:
        """Whether the lock is this process's still, although somebody removed or damaged its file."""
        if not g_pathmgr.isdir(self.folder) and "://" not in self.folder:
            return False
        if self._descriptor is None:
            return True
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(self._descriptor), os.stat(self._path)):
                return True
        self._close()
        return self._flock() is not False

    def _lost(self, holder: Holder | None) -> None:
        """End this process: two runs in one folder would destroy each other's files."""
        taker = "nobody, as the folder is gone" if holder is None else holder.described
        text = f"the lock of {self.folder} has passed to {taker}; this run (process {self._mine.pid}) ends unsaved\n"
        with suppress(OSError):
            os.write(2, text.encode())
        os._exit(1)

    def _close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _leave_to_parent() -> None:
    for lock in _held.values():
        lock.leave_to_parent()
    _held.clear()


os.register_at_fork(after_in_child=_leave_to_parent)
