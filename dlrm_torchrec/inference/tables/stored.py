"""Which tensors of a served model are stored as rows in files of their own, beside its program."""

from __future__ import annotations

from operator import attrgetter
from typing import NamedTuple

import torch
from torch import nn

from dlrm_torchrec.inference.tables.lookups import RowLookup
from dlrm_torchrec.inference.tables.maps import ServedMap

LARGE_BYTES = 1 << 16  # smaller buffers stay in the program, where TorchScript folds them into constants
STORED = "stored"  # attribute of a scripted model with its StoredTensors, as plain tuples


class StoredTensor(NamedTuple):
    """A table, or a large buffer of the modules that look up tables, such as the classes of all ids."""

    name: str
    buffer: str  # the path of the tensor that holds it
    starts: str  # the path of the bytes at which the tables in that tensor begin, in order; empty: it holds one alone
    rows: int
    row_bytes: int
    order: str = ""  # the path of the places of these numbers in ascending order, which follow from them; empty: none


def stored_tensors(model: nn.Module) -> list[StoredTensor]:
    """Those of all ``TableLookup`` in ``model``, with the tables of a buffer in their order there."""
    found: list[StoredTensor] = []
    for path, part in model.named_modules():
        if type(part).__name__ != "TableLookup":
            continue
        for inner, module in part.named_modules(prefix=path):
            if isinstance(module, RowLookup):
                paths = f"{inner}.weights", f"{inner}.starts"
                tables = zip(module.names, module.num_rows, module.row_bytes, strict=True)
                found += [StoredTensor(name, *paths, rows, row_bytes) for name, rows, row_bytes in tables]
            elif isinstance(module, ServedMap) and module.ids.nbytes >= LARGE_BYTES:
                ids = f"{inner}.ids"
                found.append(StoredTensor(ids, ids, "", len(module.ids), module.ids.itemsize, f"{inner}.order"))
            else:
                for name, buffer in module.named_buffers(recurse=False):
                    if buffer.nbytes >= LARGE_BYTES:
                        of = f"{inner}.{name}"
                        found.append(StoredTensor(of, of, "", buffer.size(0), buffer.nbytes // buffer.size(0)))
    return found


def tensor_at(program: torch.jit.ScriptModule, path: str) -> torch.Tensor:
    """The attribute of a program at a dotted path."""
    tensor: torch.Tensor = attrgetter(path)(program)
    return tensor
