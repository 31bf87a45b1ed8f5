"""The output folder of a preparation: cleared safely before, its sources identified after."""

from __future__ import annotations

import hashlib

from iopath.common.file_io import g_pathmgr

from dlrm_torchrec.datasets import manifest, quarantine
from dlrm_torchrec.datasets.manifest import SourceFile, join


def clear(output: str, overwrite: bool) -> None:
    """Make ``output`` ready to be written: created if absent, else rid of what an earlier preparation left there.

    ValueError, with nothing removed, when it is prepared already and ``overwrite`` is not set, or when it holds files
    and none of them tells that a preparation made it.
    """
    g_pathmgr.mkdirs(output)
    names = g_pathmgr.ls(output)
    if manifest.NAME in names and not overwrite:
        raise ValueError(
            f"output {output} must not be prepared already: got one with a {manifest.NAME}; "
            "set overwrite or name another folder"
        )
    # a preparation begins with its quarantine file: without one, these may be somebody's only copy
    if names and quarantine.NAME not in names:
        raise ValueError(
            f"output {output} must be empty or made by a preparation: got other files in it; name another folder"
        )
    for name in (manifest.NAME, f"{manifest.NAME}.partial", "report.json"):
        if name in names:
            g_pathmgr.rm(join(output, name))
    for folder in (join(output, name) for name in names):
        if g_pathmgr.isdir(folder):
            for name in g_pathmgr.ls(folder):
                if name.endswith(".parquet"):
                    g_pathmgr.rm(join(folder, name))
    with g_pathmgr.open(join(output, quarantine.NAME), "w"):
        pass


def source_file(path: str) -> SourceFile:
    """Path, size and SHA-256 of a raw file."""
    sha256, size = hashlib.sha256(), 0
    with g_pathmgr.open(path, "rb") as file:
        while data := file.read(1 << 20):
            sha256.update(data)
            size += len(data)
    return SourceFile(path=path, bytes=size, sha256=sha256.hexdigest())
