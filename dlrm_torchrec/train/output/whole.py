"""Files that others see as they were or as they are now, never in half."""

from __future__ import annotations

import os

from iopath.common.file_io import g_pathmgr


def write_whole(path: str, content: bytes) -> None:
    """Write a file and replace the one that is there; on a local disk, a kill leaves one of the two whole."""
    partial = f"{path}.partial"
    with g_pathmgr.open(partial, "wb") as stream:
        stream.write(content)
    if os.path.exists(partial):  # a local file, whose replacement is atomic
        os.replace(partial, path)
        return
    if g_pathmgr.exists(path):  # the move of a handler may refuse to replace a file
        g_pathmgr.rm(path)
    if not g_pathmgr.mv(partial, path):
        raise OSError(f"cannot move {partial} to {path}; check the permissions of the folder")
