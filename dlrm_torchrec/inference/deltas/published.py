"""A published folder: full packages and the deltas between all versions, by number."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlrm_torchrec.inference.deltas.contents import Contents
from dlrm_torchrec.inference.deltas.delta import Delta, read_facts
from dlrm_torchrec.inference.loading import PackageError
from dlrm_torchrec.inference.predictor import read_manifest

BASE, DELTA = "base", "delta"
_NAME = re.compile(rf"({BASE}|{DELTA})-(\d{{4,}})")


@dataclass(frozen=True)
class Published:
    """The full packages ``base-NNNN`` and the deltas ``delta-NNNN`` of a folder, by the version that each makes."""

    folder: Path
    bases: dict[int, Path]
    deltas: dict[int, Path]

    @classmethod
    def read(cls, folder: Path) -> Published:
        """What lies in a folder, which need not exist."""
        found: dict[str, dict[int, Path]] = {BASE: {}, DELTA: {}}
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if named := _NAME.fullmatch(path.name):
                found[named[1]][int(named[2])] = path
        return cls(folder, found[BASE], found[DELTA])

    @property
    def newest(self) -> int:
        """The newest version; -1 if there is none. Raises PackageError when one before it is missing."""
        newest = max([*self.bases, *self.deltas], default=-1)
        self.chain(newest)
        return newest

    def path(self, kind: str, version: int) -> Path:
        """Where the base or the delta of a version lies, or will."""
        return self.folder / f"{kind}-{version:04}"

    def chain(self, version: int) -> tuple[Path, list[Path]]:
        """The last full package up to a version, and the deltas from there to it, in order.

        Raises PackageError when one of them is missing.
        """
        first = max((number for number in self.bases if number <= version), default=-1)
        missing = [number for number in range(first + 1, version + 1) if number not in self.deltas]
        if version >= 0 and (first < 0 or missing):
            absent = self.path(BASE, 0) if first < 0 else self.path(DELTA, missing[0])
            raise PackageError(
                f"published folder {self.folder} must hold every version up to {version}: got no {absent.name}; copy "
                "it again"
            )
        return self.bases.get(first, self.folder), [self.deltas[number] for number in range(first + 1, version + 1)]

    def package(self, version: int) -> dict[str, Any]:
        """The manifest of a version's package."""
        if version in self.deltas:
            manifest = read_facts(self.deltas[version])["package"]
        else:
            manifest = read_manifest(self.bases[version])
        return dict(manifest)

    def contents(self, version: int) -> tuple[Contents, str]:
        """The package of a version, in memory, and the fingerprint of the full package that its chain begins with."""
        base, deltas = self.chain(version)
        contents = Contents.read(base)
        fingerprint: str = contents.manifest["fingerprint"]
        for path in deltas:
            contents.apply(Delta.read(path))
        return contents, fingerprint
