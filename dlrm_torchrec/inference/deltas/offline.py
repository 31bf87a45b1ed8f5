"""Make deltas from packages on disk, and packages from deltas."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dlrm_torchrec.inference.deltas.changes import changed_rows, changed_values
from dlrm_torchrec.inference.deltas.contents import WHOLE, Contents
from dlrm_torchrec.inference.deltas.delta import DELTA, FORMAT, Delta
from dlrm_torchrec.inference.new_folder import new_folder
from dlrm_torchrec.inference.package import sha256_of
from dlrm_torchrec.inference.predictor import MODEL
from dlrm_torchrec.schema import safe_name


def make_delta(previous: Path, new: Path, output: Path) -> Delta:
    """Write what the package ``new`` has that ``previous`` has not, as the next version; see ``write_delta``."""
    old, made = Contents.read(previous), Contents.read(new)
    made.manifest = made.manifest | {"version": old.manifest["version"] + 1}
    return write_delta(old, made, output, base=old.manifest["fingerprint"])


def apply_deltas(package: Path, deltas: Sequence[Path], output: Path) -> None:
    """Write the package that deltas make of ``package``, one after the other.

    Raises ValueError, and writes nothing, when a package or delta is damaged, or when a delta does not follow.
    """
    contents = Contents.read(package)
    for path in deltas:
        contents.apply(Delta.read(path))
    contents.write(output)


def write_delta(old: Contents, new: Contents, output: Path, *, base: str) -> Delta:
    """Write the delta from ``old`` to ``new`` to the folder ``output``, which appears whole.

    It holds the rows of tables whose bytes differ, the values of vocabularies that differ, and whole the program with
    the dense parts and all other files that differ. ``base`` is the fingerprint of the package that the chain of
    deltas begins with. Raises ValueError when ``output`` exists without a delta, or when the packages have other tables
    or tables of other types.
    """
    _check_same_tables(old.manifest, new.manifest)
    if output.exists() and not (output / DELTA).is_file():
        raise ValueError(
            f"{output} must be a delta or not exist: got a file or folder without {DELTA}; name another folder"
        )
    package = new.manifest
    with new_folder(output) as folder:
        tables, vocabularies = dict[str, Any](), dict[str, Any]()
        (folder / "tables").mkdir()
        for name, rows in new.tables.items():
            numbers = changed_rows(old.tables[name], rows)
            if len(numbers) or len(rows) != len(old.tables[name]):
                files = {part: f"tables/{safe_name(name)}.{part}.npy" for part in ("numbers", "rows")}
                fits = len(rows) < 2**32
                np.save(folder / files["numbers"], numbers.astype(np.uint32) if fits else numbers)
                np.save(folder / files["rows"], rows[numbers])
                tables[name] = {**files, "changed": len(numbers), "total": len(rows)}
        (folder / "vocab").mkdir()
        for file, values in new.vocabularies.items():
            places = changed_values(old.vocabularies[file], values)
            if len(places) or len(values) != len(old.vocabularies[file]):
                pq.write_table(pa.table({"place": places, "value": values.take(places)}), folder / file)
                vocabularies[file] = {"values": file, "changed": len(places), "total": len(values)}
        known = old.manifest["files"]
        whole = [name for name in new.others if name == MODEL or package["files"][name] != known.get(name)]
        (folder / WHOLE).mkdir()
        for name in whole:
            shutil.copyfile(new.others[name], folder / WHOLE / name)
        facts = {
            "format": FORMAT,
            **{name: package[name] for name in ("name", "version", "window", "trained_until")},
            "base": base,
            "predecessor": old.manifest["fingerprint"],
            "result": package["fingerprint"],
            "tables": tables,
            "vocabularies": vocabularies,
            "whole": whole,
            "package": package,
            "files": {
                str(file.relative_to(folder)): sha256_of(file) for file in sorted(folder.rglob("*")) if file.is_file()
            },
        }
        (folder / DELTA).write_text(json.dumps(facts, indent=1) + "\n")
    return Delta(output, facts)


def _check_same_tables(old: dict[str, Any], new: dict[str, Any]) -> None:
    if list(old["tables"].items()) != list(new["tables"].items()) or old["digests"].keys() != new["digests"].keys():
        differ = sorted({*old["tables"], *old["digests"]} ^ {*new["tables"], *new["digests"]})
        raise ValueError(
            f"packages of a delta must have the same tables and vocabularies: got {differ or 'others'}; publish a full "
            "package"
        )
