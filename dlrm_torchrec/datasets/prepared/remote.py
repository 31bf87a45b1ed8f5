"""Files that only a handler of iopath can open, in an object store for example."""

from __future__ import annotations

import io

from iopath.common.file_io import g_pathmgr


def random_access(path: str) -> str:
    """A path under which any part of the file can be read by itself: ``path``, or a copy that its handler made.

    Most handlers open files in which one can seek, and fetch what is read. Of those that cannot, or that fetch a whole
    file to open it, as iopath's own for S3 does, each file is fetched once, to the local disk.
    """
    with g_pathmgr.open(path, "rb") as file:
        if file.seekable() and not isinstance(file, io.BytesIO):
            return path
    copy: str = g_pathmgr.get_local_path(path)
    return copy
