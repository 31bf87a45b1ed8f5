"""A package's contents in memory, which deltas change without loading its model."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from dlrm_torchrec.inference.deltas.changes import Array, with_rows, with_values
from dlrm_torchrec.inference.deltas.delta import Delta
from dlrm_torchrec.inference.new_folder import new_folder
from dlrm_torchrec.inference.package import fingerprint_of, sha256_of, write_manifest, write_rows, write_vocabulary
from dlrm_torchrec.inference.predictor import FORMAT, MANIFEST, checked_manifest

WHOLE = "whole"  # the folder of a delta with files that it brings as they are


@dataclass
class Contents:
    """A package; its tables lie on disk until they are changed."""

    manifest: dict[str, Any]
    tables: dict[str, Array]  # by name
    vocabularies: dict[str, Any]  # Arrow arrays by file
    others: dict[str, Path]  # where each other file of the package lies

    @classmethod
    def read(cls, path: Path) -> Contents:
        """Those of a package's folder, which stays as it is. Raises ValueError when it is no whole package."""
        manifest = checked_manifest(path)
        if manifest["fingerprint"] == "":
            raise ValueError(
                f"format of package {path} must be {FORMAT} to have deltas: got {manifest['format']}; write the "
                "package again"
            )
        # a private mapping: pages that are written become memory, and the file does not change
        tables = {
            name: np.load(path / table["file"], mmap_mode="c", allow_pickle=False)
            for name, table in manifest["tables"].items()
        }
        vocabularies = {file: pq.read_table(path / file)["value"].combine_chunks() for file in manifest["digests"]}
        own = {table["file"] for table in manifest["tables"].values()} | vocabularies.keys()
        others = {name: path / name for name in manifest["files"] if name not in own}
        return cls(manifest, tables, vocabularies, others)

    def apply(self, delta: Delta) -> None:
        """Become the package that a delta makes. Raises DeltaError when it was made from another one."""
        delta.check_follows(self.manifest)
        for name, table in delta.facts["tables"].items():
            self.tables[name] = with_rows(self.tables[name], *delta.rows(name), table["total"])
        for file, vocabulary in delta.facts["vocabularies"].items():
            self.vocabularies[file] = with_values(self.vocabularies[file], *delta.values(file), vocabulary["total"])
        self.others |= {name: delta.path / WHOLE / name for name in delta.facts["whole"]}
        self.manifest = delta.package

    def write(self, path: Path) -> None:
        """Write the package's folder. Raises ValueError when it is not what its manifest says."""
        if path.exists() and not (path / MANIFEST).is_file():
            raise ValueError(
                f"{path} must be a package or not exist: got a file or folder without {MANIFEST}; name another folder"
            )
        manifest = self.manifest | {"files": dict(self.manifest["files"])}
        with new_folder(path) as new:
            for name, table in manifest["tables"].items():
                write_rows(new / table["file"], self.tables[name])
            for file, digest in manifest["digests"].items():
                found = write_vocabulary(new / file, self.vocabularies[file])
                if found != digest:
                    raise ValueError(f"vocabulary {file} must have digest {digest}: got {found}; make the delta again")
                manifest["files"][file] = sha256_of(new / file)  # another release of pyarrow may write other bytes
            for name in manifest["files"].keys() & self.others.keys():
                shutil.copyfile(self.others[name], new / name)
            for name, sha256 in manifest["files"].items():
                if sha256_of(new / name) != sha256:
                    raise ValueError(f"{name} must have sha256 {sha256}: got other contents; make the delta again")
            if fingerprint_of(manifest) != manifest["fingerprint"]:
                raise ValueError(
                    f"fingerprint must be {manifest['fingerprint']}: got {fingerprint_of(manifest)}; make the delta "
                    "again"
                )
            write_manifest(new, manifest)
