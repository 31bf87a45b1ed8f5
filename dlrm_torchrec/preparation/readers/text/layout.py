"""How rows of text are written, and what becomes of a block of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa

from dlrm_torchrec.preparation.readers.rows import Ints, Mask


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How the rows of a text file are written."""

    separator: str  # one or several characters
    names: tuple[str, ...]  # of all columns, in their order
    header: int = 0  # number of the line that names the columns; 0 means that none does
    libsvm: bool = False  # lines are ``label index:value index:value``

    def __str__(self) -> str:
        if self.libsvm:
            return f"libsvm lines with the columns {list(self.names)}"
        named = f"named in line {self.header}" if self.header else "named by the command"
        return f"text with {len(self.names)} columns, {named}, and separator {self.separator!r}"


class Parsed(NamedTuple):
    """The N rows of a block of lines that have the right number of fields, and the others."""

    columns: dict[str, Any]  # Arrow arrays (N,)
    first: Ints  # (N,) index of the row's first line, ascending
    end: Ints  # (N,) index after its last line
    rejected: list[tuple[int, int, str]]  # the same two of each other row, and the reason

    def select(self, keep: Mask) -> Parsed:
        """The rows where ``keep`` (N,) holds, and all others."""
        columns = {name: column.filter(pa.array(keep)) for name, column in self.columns.items()}
        return self._replace(columns=columns, first=self.first[keep], end=self.end[keep])
