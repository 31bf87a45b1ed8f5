"""The folder of a delta: what turns one package into the next."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from dlrm_torchrec.inference.loading import PackageError
from dlrm_torchrec.inference.predictor import check_files

DELTA, FORMAT = "delta.json", 1
_FIELDS: dict[str, type] = {
    **{"version": int, "window": str, "trained_until": str, "base": str, "predecessor": str, "result": str},
    **{"package": dict, "tables": dict, "vocabularies": dict, "whole": list, "files": dict},
}

Array = np.ndarray[Any, Any]


class DeltaError(PackageError):
    """Says why a delta cannot be applied."""


@dataclass(frozen=True)
class Delta:
    """A delta on disk, whose files are as they were written; nothing in it is a pickle."""

    path: Path
    facts: Mapping[str, Any]  # the contents of delta.json

    @classmethod
    def read(cls, path: Path) -> Delta:
        """The delta in a folder. Raises DeltaError when it is none, or when a file has changed."""
        facts = read_facts(path)
        try:
            check_files(path, facts["files"])
        except ValueError as error:
            raise DeltaError(str(error)) from error
        return cls(path, facts)

    @property
    def version(self) -> int:
        """The number of models before the one that it makes."""
        version: int = self.facts["version"]
        return version

    @property
    def predecessor(self) -> str:
        """The fingerprint of the package that it changes."""
        return str(self.facts["predecessor"])

    @property
    def result(self) -> str:
        """The fingerprint of the package that it makes."""
        return str(self.facts["result"])

    @property
    def package(self) -> dict[str, Any]:
        """The manifest of the package that it makes."""
        return dict(self.facts["package"])

    def rows(self, table: str) -> tuple[Array, Array]:
        """Numbers of rows of a table, ascending (n,), and these rows (n, ...)."""
        files = self.facts["tables"][table]
        numbers, rows = (np.load(self.path / files[part], allow_pickle=False) for part in ("numbers", "rows"))
        return numbers, rows

    def values(self, vocabulary: str) -> tuple[Array, Any]:
        """Places in a vocabulary's file, ascending (n,), and an Arrow array of the values there."""
        table = pq.read_table(self.path / self.facts["vocabularies"][vocabulary]["values"])
        return table["place"].to_numpy(), table["value"].combine_chunks()

    def check_follows(self, package: Mapping[str, Any]) -> None:
        """Raises DeltaError unless it was made from the package of this manifest."""
        if package["fingerprint"] == self.predecessor:
            return
        if package["fingerprint"] == self.result:
            raise DeltaError(
                f"delta must be new: got version {self.version}, which this package has already; leave it out"
            )
        if self.version != package["version"] + 1:
            raise DeltaError(
                f"delta must follow version {package['version']}: got version {self.version}; apply every version once "
                "and in order"
            )
        raise DeltaError(
            f"delta must be made from package {package['fingerprint']}: got one from {self.predecessor}, whose base is "
            f"{self.facts['base']}; take the deltas of this package, or load a full package"
        )


def read_facts(path: Path) -> dict[str, Any]:
    """The contents of delta.json in a folder, without a look at the other files. Raises DeltaError when it is none."""
    try:
        facts: dict[str, Any] = json.loads((path / DELTA).read_bytes())
        form = facts["format"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise DeltaError(f"folder {path} must hold a {DELTA}: got {error!r}; name a delta's folder") from error
    if form != FORMAT:
        raise DeltaError(f"format of delta {path} must be {FORMAT}: got {form!r}; make the delta again")
    for name, kind in _FIELDS.items():
        if not isinstance(facts.get(name), kind):
            raise DeltaError(
                f"{name} in {path / DELTA} must be of type {kind.__name__}: got {facts.get(name)!r:.50}; copy the "
                "delta again"
            )
    return facts
