"""Which tensors of a served model are stored as rows in files of their own, beside its program."""

from __future__ import annotations

from operator import attrgetter
from typing import NamedTuple

import torch
from torch import nn

from dlrm_torchrec.inference.tables.lookups import RowLookup

LARGE_BYTES = 1 << 16  # smaller buffers stay in the program
STORED = "stored"  # attribute of a scripted model with its StoredTensors, as plain tuples


class StoredTensor(NamedTuple):
    """A table, or a large buffer of the modules that look up tables, such as the classes of all ids."""

    name: str
    buffer: str  # the path of the tensor that holds it
    starts: str  # the path of the bytes at which the tables in that tensor begin, in order; empty: it holds one alone
    order: str  # the path of a tensor that follows from this one, its places in ascending order; empty: there is none
    rows: int
    row_bytes: int


def stored_tensors(model: nn.Module) -> list[StoredTensor]:
    """Those of all ``TableLookup`` and ``IdLookup`` in ``model``, with the tables of a buffer in their order there."""
    found: list[StoredTensor] = []
    for path, part in model.named_modules():
        if type(part).__name__ not in ("TableLookup", "IdLookup"):
            continue
        for inner, module in part.named_modules(prefix=path):
            if isinstance(module, RowLookup):
                paths = f"{inner}.weights", f"{inner}.starts", ""
                tables = zip(module.names, module.num_rows, module.row_bytes, strict=True)
                found += [StoredTensor(name, *paths, rows, row_bytes) for name, rows, row_bytes in tables]
            else:
                source, order = getattr(module, "ordered", ("", ""))
                for name, buffer in module.named_buffers(recurse=False):
                    if buffer.nbytes >= LARGE_BYTES and name != order:
                        of, follows = f"{inner}.{name}", f"{inner}.{order}" if name == source else ""
                        found.append(StoredTensor(of, of, "", follows, len(buffer), buffer.nbytes // len(buffer)))
    return found


def tensor_at(program: torch.jit.ScriptModule, path: str) -> torch.Tensor:
    """The attribute of a program at a dotted path."""
    tensor: torch.Tensor = attrgetter(path)(program)
    return tensor
