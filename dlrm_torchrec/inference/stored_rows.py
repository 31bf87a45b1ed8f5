"""The tables of a package in memory, where their rows can be changed and new rows can follow.

A package holds a copy of this file, which needs only numpy and torch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from copy import copy
from itertools import accumulate
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOM, SPARE_ROWS = 2, 1024  # a table may grow to so many times its rows, and by so many more
_ALIGNMENT = 128  # bytes, two cache lines


class StoredRows:
    """The rows of all tables by name, in the tensors that programs read.

    ``rows[name]`` is uint8 (room, bytes of a row) of a table, and of any type for another tensor, without room to grow.
    """

    def __init__(self, path: Path, tables: Mapping[str, Mapping[str, Any]]) -> None:
        """Reads the ``tables`` that a manifest lists from the folder ``path``."""
        self.rows: dict[str, np.ndarray[Any, Any]] = {}
        self._tensors: dict[str, torch.Tensor] = {}
        self._order_of = {name: table["order"] for name, table in tables.items() if table["order"]}
        self.orders: dict[str, torch.Tensor] = {}
        of_buffer = defaultdict[tuple[str, str], list[str]](list)
        for name, table in tables.items():
            of_buffer[table["buffer"], table["starts"]].append(name)
        for (buffer, starts), names in of_buffer.items():
            files = [np.load(path / tables[name]["file"], mmap_mode="r", allow_pickle=False) for name in names]
            if starts:
                self._tensors[buffer], self._tensors[starts] = self._with_room(dict(zip(names, files, strict=True)))
            else:
                self.rows[names[0]] = np.array(files[0])
                self._tensors[buffer] = torch.from_numpy(self.rows[names[0]])
        self.orders = self._sorted(self.rows)

    def reordered(self, changed: Mapping[str, np.ndarray[Any, Any]]) -> StoredRows:
        """The same rows for programs that read them when some tables will be as in ``changed``."""
        other = copy(self)
        other.orders = self.orders | self._sorted(changed)
        return other

    def _sorted(self, rows: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, torch.Tensor]:
        """The tensors that follow from ``rows``, by path."""
        return {
            path: torch.from_numpy(np.argsort(rows[name], kind="stable"))
            for name, path in self._order_of.items()
            if name in rows
        }

    def _with_room(self, files: Mapping[str, np.ndarray[Any, Any]]) -> tuple[torch.Tensor, torch.Tensor]:
        """The memory of tables that programs read as one tensor, and where each of them begins there."""
        room = [ROOM * len(file) + SPARE_ROWS for file in files.values()]
        widths = [file.shape[1] for file in files.values()]
        sizes = [-(-rows * width // _ALIGNMENT) * _ALIGNMENT for rows, width in zip(room, widths, strict=True)]
        *starts, end = accumulate(sizes, initial=0)
        memory = np.zeros(end, np.uint8)  # the system gives memory only to the pages that are written
        for (name, file), start, rows in zip(files.items(), starts, room, strict=True):
            self.rows[name] = memory[start : start + rows * file.shape[1]].reshape(rows, -1)
            self.rows[name][: len(file)] = file
        return torch.from_numpy(memory), torch.tensor(starts)

    def attach(self, program: torch.jit.ScriptModule) -> None:
        """Let ``program`` read these rows."""
        for path, tensor in {**self._tensors, **self.orders}.items():
            set_tensor(program, path, tensor)


def set_tensor(program: torch.jit.ScriptModule, path: str, tensor: torch.Tensor) -> None:
    """Set the attribute of a program at a dotted path."""
    holder, _, name = path.rpartition(".")
    setattr(attrgetter(holder)(program), name, tensor)
