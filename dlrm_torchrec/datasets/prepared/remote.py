"""Files that only a handler of iopath can open, for example in an object store."""

from __future__ import annotations

import io

from iopath.common.file_io import g_pathmgr


def random_access(path: str) -> str:
    """A path at which any part of the file can be read alone: ``path`` itself, or a local copy that its handler made.

    Most handlers open seekable files and fetch only the parts that are read. If a handler cannot do so, or fetches the
    whole file to open it, as iopath's own handler for S3 does, the file is copied to the local disk once.
    """
    with g_pathmgr.open(path, "rb") as file:
        if file.seekable() and not isinstance(file, io.BytesIO):
            return path
    copy: str = g_pathmgr.get_local_path(path)
    return copy
