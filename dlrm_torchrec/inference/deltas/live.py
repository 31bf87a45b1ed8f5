"""Bring a predictor in memory up to date, in place: only rows that changed are copied, and they can be put back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dlrm_torchrec.inference.deltas.changes import Array, Numbers, with_values
from dlrm_torchrec.inference.deltas.contents import WHOLE
from dlrm_torchrec.inference.deltas.delta import Delta, DeltaError
from dlrm_torchrec.inference.loading import try_out
from dlrm_torchrec.inference.lookups import Vocabulary
from dlrm_torchrec.inference.predictor import Predictor, load_program


@dataclass(frozen=True)
class Change:
    """Rows of one table, before and after."""

    table: Array  # (rows,), each one item
    numbers: Numbers
    old: Array
    new: Array


@dataclass(frozen=True)
class Update:
    """A predictor of the next version, which shares its rows with the one before.

    It is right after ``write``, and the one before is right again after ``undo``. Nothing may run on either meanwhile.
    """

    predictor: Predictor
    changes: tuple[Change, ...]

    def write(self) -> None:
        for change in self.changes:
            change.table[change.numbers] = change.new

    def undo(self) -> None:
        for change in self.changes:
            change.table[change.numbers] = change.old


def prepare_update(predictor: Predictor, path: Path) -> Update:
    """The update that the delta in the folder ``path`` makes of ``predictor``, which may run meanwhile.

    The next version is tried out, with the rows as they still are. Raises DeltaError when the delta is damaged, does
    not follow or does not fit the memory, and when the next version fails.
    """
    delta = Delta.read(path)
    delta.check_follows(predictor.manifest)
    package = delta.package
    try:
        if package["tables"] != predictor.manifest["tables"]:
            raise DeltaError("tables of a delta must be those of the package: got others; load a full package")
        changes = {name: _change(predictor, delta, name) for name in delta.facts["tables"]}
        program = load_program(path / WHOLE, package["versions"])
        vocabularies = dict(predictor.vocabularies) | _vocabularies(predictor.vocabularies, delta)
        found = {file: vocabulary.digest for file, vocabulary in vocabularies.items()}
        if found != package["digests"]:
            raise DeltaError(f"vocabularies must have digests {package['digests']}: got {found}; make the delta again")
        stored = predictor.stored.reordered(
            {
                name: _after(predictor, name, change)
                for name, change in changes.items()
                if package["tables"][name]["order"]
            }
        )
        after = Predictor(package, vocabularies, program, stored, top=predictor.top)
        try_out(after, path)
    except DeltaError:
        raise
    except Exception as error:  # libraries raise all kinds of errors for a damaged file
        raise DeltaError(f"delta {path} must give predictions: got {error!r}; make it again") from error
    return Update(after, tuple(changes.values()))


def _change(predictor: Predictor, delta: Delta, name: str) -> Change:
    table, total = predictor.stored.rows[name], delta.facts["tables"][name]["total"]
    numbers, rows = delta.rows(name)
    if table.dtype != rows.dtype or table.shape[1:] != rows.shape[1:] or len(numbers) != len(rows):
        raise DeltaError(f"rows of table {name!r} must be of its type: got {rows.dtype} {rows.shape}; make it again")
    if total > len(table) or (len(numbers) and int(numbers[-1]) >= total):
        raise DeltaError(
            f"table {name!r} must have at most {len(table)} rows in this memory: got {total}; load a full package"
        )
    items, numbers = _as_items(table), numbers.astype(np.int64)
    return Change(items, numbers, items[numbers], _as_items(rows))


def _after(predictor: Predictor, name: str, change: Change) -> Array:
    """The rows of a table after a change that is still to come."""
    rows = predictor.stored.rows[name].copy()
    _as_items(rows)[change.numbers] = change.new
    return rows


def _as_items(rows: Array) -> Array:
    """Each row as one item, which NumPy copies twice as fast as its numbers."""
    return rows.reshape(len(rows), -1).view(f"V{rows.dtype.itemsize * int(np.prod(rows.shape[1:]))}")[:, 0]


def _vocabularies(old: Mapping[str, Vocabulary], delta: Delta) -> dict[str, Vocabulary]:
    changed = dict[str, Any]()
    for file, facts in delta.facts["vocabularies"].items():
        places, values = delta.values(file)
        changed[file] = old[file].changed(with_values(old[file].values, places, values, facts["total"]), places)
    return changed
