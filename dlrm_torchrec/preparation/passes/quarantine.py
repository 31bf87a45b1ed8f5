"""Keeps malformed rows in ``quarantine.tsv``, with their file and line, the reason, and their bytes."""

from __future__ import annotations

from collections.abc import Iterable

from dlrm_torchrec.datasets.prepared.files import NewFile, chunks, join
from dlrm_torchrec.preparation.readers.rows import Rejected
from dlrm_torchrec.preparation.work.output_folder import QUARANTINE

_HEADER = "source\tline\treason\traw\n"


def escape(raw: bytes) -> str:
    r"""The bytes as printable ASCII on one line without tabs; ``unescape`` is the inverse.

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


def add_rejected(file: NewFile, source: str, rows: Iterable[Rejected]) -> None:
    """Append malformed rows of a source, one per line: source, line, reason and raw (escaped)."""
    place = escape(source.encode())
    for row in rows:
        file.write(f"{place}\t{row.number}\t{row.reason}\t{escape(row.raw)}\n".encode("ascii"))


def join_quarantine(folder: str, parts: Iterable[str]) -> None:
    """Write ``quarantine.tsv`` from the files ``parts``, which ``add_rejected`` wrote, in their order."""
    with NewFile(folder, QUARANTINE) as file:
        file.write(_HEADER.encode())
        for part in parts:
            for chunk in chunks(join(folder, part)):
                file.write(chunk)
