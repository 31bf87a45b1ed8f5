"""Files that appear under their name only when they are complete, with their size and checksum."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from iopath.common.file_io import g_pathmgr

from dlrm_torchrec.datasets.prepared.stores import register_stores

register_stores()  # here, because all that reads or writes prepared folders imports this file
PARTIAL = ".partial"
_CHUNK_BYTES = 1 << 20


def join(folder: str, *names: str) -> str:
    """A path below ``folder``, which may be a local path or a URI such as ``s3://bucket/data``."""
    return "/".join([folder.rstrip("/"), *names])


def is_local(path: str) -> bool:
    """Whether a path is local, so that it needs no handler."""
    return "://" not in path


@dataclass(frozen=True)
class Stored:
    """A complete file; ``path`` is relative to the prepared folder."""

    path: str
    bytes: int
    sha256: str


class NewFile:
    """A binary file that is open for writing, and has another name until ``close``.

    Arrow can write to it as to a file. It is also a context manager that leaves nothing behind after an error.
    """

    def __init__(self, folder: str, path: str) -> None:
        self._target, self.path = join(folder, path), path
        self._partial = f"{self._target}.{secrets.token_hex(4)}{PARTIAL}"  # a name that no other process uses
        self._sha256, self._bytes = hashlib.sha256(), 0
        self.closed = False
        g_pathmgr.mkdirs(self._target.rpartition("/")[0])
        self._file = g_pathmgr.open(self._partial, "wb")

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        self._sha256.update(view)
        self._bytes += len(view)
        self._file.write(view)
        return len(view)

    def tell(self) -> int:
        return self._bytes

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        if not self.closed:
            self._file.close()
            replace(self._partial, self._target)
            self.closed = True

    def discard(self) -> None:
        """Remove what was written, unless the file is complete."""
        if not self.closed:
            self.closed = True
            with suppress(OSError):  # a full disk has no room for what is left in memory
                self._file.close()
            g_pathmgr.rm(self._partial)

    @property
    def stored(self) -> Stored:
        return Stored(self.path, self._bytes, self._sha256.hexdigest())

    def __enter__(self) -> NewFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close() if kind is None else self.discard()


def replace(partial: str, target: str) -> None:
    """Move a file to ``target`` and replace a file there; this is atomic if the path is local."""
    if is_local(target):
        os.replace(partial, target)
        return
    if g_pathmgr.exists(target):  # the move of a handler may refuse to replace a file
        g_pathmgr.rm(target)
    if not g_pathmgr.mv(partial, target):
        raise OSError(f"cannot move {partial} to {target}; check the permissions of the folder")


def write_json(folder: str, path: str, data: Any, indent: int | None = None) -> None:
    """Write ``data`` to a file, which others see complete or not at all."""
    with NewFile(folder, path) as file:
        file.write((json.dumps(data, indent=indent) + "\n").encode())


def read_json(path: str) -> Any:
    """The content of a JSON file; None if the file is missing or is not JSON."""
    try:
        with g_pathmgr.open(path, "r") as file:
            return json.load(file)
    except (OSError, ValueError):
        return None


def chunks(path: str) -> Iterator[bytes]:
    """The bytes of a file, piece by piece."""
    with g_pathmgr.open(path, "rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk


def digest(path: str, read: Callable[[int], None]) -> tuple[int, str]:
    """The size and SHA-256 of a file; ``read`` is called with the number of bytes of each piece."""
    sha256, size = hashlib.sha256(), 0
    for chunk in chunks(path):
        sha256.update(chunk)
        size += len(chunk)
        read(len(chunk))
    return size, sha256.hexdigest()


def remove(folder: str) -> None:
    """Remove a folder with all its content, if it exists."""
    if is_local(folder):
        shutil.rmtree(folder, ignore_errors=True)
    elif g_pathmgr.isdir(folder):
        for path in (join(folder, name) for name in g_pathmgr.ls(folder)):
            remove(path) if g_pathmgr.isdir(path) else g_pathmgr.rm(path)


def explained(error: OSError, folder: str) -> OSError:
    """If ``folder`` cannot be written, the error as a sentence that says what to do; otherwise the error itself."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OSError(
            f"the disk of {folder} must have room for the prepared data: got '{error.strerror}'; make room, then run "
            "the same command again: finished parts are kept"
        )
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM) and str(error.filename).startswith(folder):
        return OSError(
            f"output {folder} must be a writable folder: got '{error.strerror}'; change its permissions, "
            "then run the same command again, or name another folder"
        )
    return error
