"""Malformed rows, kept in ``quarantine.tsv`` with where they stood, why they are there, and their bytes."""

from __future__ import annotations

from types import TracebackType

from iopath.common.file_io import g_pathmgr

from dlrm_torchrec.datasets.manifest import join
from dlrm_torchrec.datasets.rows import Rejected

NAME = "quarantine.tsv"


def escape(raw: bytes) -> str:
    r"""Printable ASCII on one line without tabs; ``unescape`` gives the bytes back.

    >>> print(escape(b"1\t\x00caf\xe9"))
    1\t\x00caf\xe9
    """
    return raw.decode("latin-1").encode("unicode_escape").decode("ascii")


def unescape(text: str) -> bytes:
    r"""The bytes that ``escape`` was given.

    >>> unescape(escape(b"a\tb\\n\n"))
    b'a\tb\\n\n'
    """
    return text.encode("ascii").decode("unicode_escape").encode("latin-1")


class Quarantine:
    """An open ``quarantine.tsv`` with the columns source, line, reason and raw (escaped)."""

    def __init__(self, folder: str) -> None:
        self._file = g_pathmgr.open(join(folder, NAME), "w")
        self._file.write("source\tline\treason\traw\n")

    def add(self, source: str, rejected: Rejected) -> None:
        place = escape(source.encode())
        self._file.write(f"{place}\t{rejected.number}\t{rejected.reason}\t{escape(rejected.raw)}\n")

    def __enter__(self) -> Quarantine:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()
