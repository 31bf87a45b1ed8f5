"""The files that a path means: a file, the files of a folder, or those that match a pattern."""

from __future__ import annotations

import fnmatch
import re

from iopath.common.file_io import g_pathmgr

from dlrm_torchrec.datasets.prepared.files import join

_PATTERN = re.compile(r"[*?\[]")


def files_of(path: str) -> list[str]:
    """The files in natural order: day_2 comes before day_10.

    Files of a folder whose names begin with _ or . (as Spark's _SUCCESS) or end in .crc hold no rows and are left out.
    Raises ValueError if there is none.
    """
    if g_pathmgr.isfile(path):
        return [path]
    found = _matches(path) if _PATTERN.search(path) and not g_pathmgr.isdir(path) else [path]
    files = [file for each in found for file in _files_below(each)]
    if not files:
        raise ValueError(f"input {path} must be a file, a folder with files or a pattern: got no file; check the path")
    return sorted(files, key=natural)


def natural(path: str) -> list[tuple[int, str]]:
    """A key that sorts day_2 before day_10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path)]


def _files_below(path: str) -> list[str]:
    if not g_pathmgr.isdir(path):
        return [path] if g_pathmgr.isfile(path) else []
    return [file for name in g_pathmgr.ls(path) if _has_rows(name) for file in _files_below(join(path, name))]


def _has_rows(name: str) -> bool:
    return not name.startswith(("_", ".")) and not name.endswith(".crc")


def _matches(pattern: str) -> list[str]:
    """The paths that match a pattern, folder by folder; a handler of iopath need not know patterns."""
    folder, _, name = pattern.rpartition("/")
    if not name or not folder:
        folders = [folder or "/" if pattern.startswith("/") else "."]
    else:
        folders = _matches(folder) if _PATTERN.search(folder) else [folder]
    if not _PATTERN.search(name):
        return [join(each, name) for each in folders if g_pathmgr.exists(join(each, name))]
    found = []
    for each in folders:
        if g_pathmgr.isdir(each):
            here = [one for one in g_pathmgr.ls(each) if fnmatch.fnmatchcase(one, name)]
            found += [one if each == "." and not pattern.startswith("./") else join(each, one) for one in here]
    return found
