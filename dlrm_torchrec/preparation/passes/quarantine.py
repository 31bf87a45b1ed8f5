"""Keeps malformed rows in ``quarantine.tsv``, with their file and line, the reason, and their bytes."""

from __future__ import annotations

import re
from collections.abc import Iterable

from dlrm_torchrec.datasets.prepared.files import NewFile, chunks, join
from dlrm_torchrec.preparation.readers.rows import Rejected
from dlrm_torchrec.preparation.work.output_folder import QUARANTINE

_HEADER = "source\tline\treason\traw\n"
_ESCAPED = re.compile(rb"\\(?:[\\tnr]|x[0-9a-f]{2})")


def escape(raw: bytes) -> str:
    r"""The bytes as printable text on one line without tabs, those of UTF-8 as they are; ``unescape`` is the inverse.

    >>> print(escape("1\t\0Zoë".encode() + b"caf\xe9"))
    1\t\x00Zoëcaf\xe9
    """
    text = raw.decode("utf-8", "surrogateescape")
    if text.isprintable() and "\\" not in text:
        return text
    return "".join(each if each.isprintable() and each != "\\" else _escaped(each) for each in text)


def unescape(text: str) -> bytes:
    r"""The bytes that ``escape`` was given.

    >>> unescape(escape(b"a\tb\\n\n"))
    b'a\tb\\n\n'
    """
    return _ESCAPED.sub(lambda found: found[0].decode("unicode_escape").encode("latin-1"), text.encode())


def _escaped(character: str) -> str:
    """The bytes of a character, each as Python writes it in ASCII."""
    octets = character.encode("utf-8", "surrogateescape").decode("latin-1")
    return octets.encode("unicode_escape").decode("ascii")


def add_rejected(file: NewFile, source: str, rows: Iterable[Rejected]) -> None:
    """Append malformed rows of a source, one per line: source, line, reason and raw (escaped)."""
    place = escape(source.encode())
    for row in rows:
        file.write(f"{place}\t{row.number}\t{row.reason}\t{escape(row.raw)}\n".encode())


def join_quarantine(folder: str, parts: Iterable[str]) -> None:
    """Write ``quarantine.tsv`` from the files ``parts``, which ``add_rejected`` wrote, in their order."""
    with NewFile(folder, QUARANTINE) as file:
        file.write(_HEADER.encode())
        for part in parts:
            for chunk in chunks(join(folder, part)):
                file.write(chunk)
