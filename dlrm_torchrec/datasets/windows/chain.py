"""Whether prepared folders follow each other.

    python -m dlrm_torchrec.datasets.windows.chain prepared/day-01 prepared/day-02 prepared/day-03

``dataset.json`` names the folder before by its fingerprint, and that folder's own place in the chain is a part of its
fingerprint. So no folder can be left out, changed or exchanged unnoticed.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from hashlib import sha256
from itertools import pairwise

import tyro

from dlrm_torchrec.datasets.prepared.manifest import Manifest


def fingerprint(manifest: Manifest) -> str:
    """SHA-256 of what a prepared folder holds and what it follows; profiling, copying and renaming do not change it."""
    sparse = tuple(replace(feature, pooling_factor=1.0) for feature in manifest.spec.sparse)  # profiling measures it
    held = {
        "spec": replace(manifest.spec, sparse=sparse).to_json(),
        "splits": {name: [asdict(file) for file in split.files] for name, split in manifest.splits.items()},
        "sources": [(source.bytes, source.sha256) for source in manifest.sources],
        "lineage": manifest.lineage and manifest.lineage.to_json(),
    }
    return sha256(json.dumps(held, sort_keys=True).encode()).hexdigest()


def check_follows(later: Manifest, earlier: Manifest, folders: tuple[str, str]) -> None:
    """Raises ValueError unless ``later`` continues the vocabularies of ``earlier``; ``folders`` name both."""
    wanted = fingerprint(earlier)
    if later.lineage is None or later.lineage.follows != wanted:
        follows = later.lineage.follows[:12] if later.lineage else ""
        raise ValueError(
            f"{folders[0]} must continue {folders[1]}, whose fingerprint is {wanted[:12]}: got one that follows "
            f"{follows or 'no folder'}; name the folders in their order and leave none out, or prepare it with --after"
        )


def comes_after(later: Manifest, earlier: Manifest) -> bool:
    """Whether ``later`` is a window of the chain of ``earlier`` after it, with other windows between them or none."""
    new, old = later.lineage, earlier.lineage
    return bool(new and old and new.window > old.window and {*new.sources} >= {*old.sources})


def main(folders: tyro.conf.Positional[tuple[str, ...]]) -> None:
    """Check that each prepared folder continues the one before, and print what each of them changed.

    Args:
        folders: prepared folders in their order
    """
    manifests = [Manifest.load(folder) for folder in folders]
    for (earlier, before), (later, after) in pairwise(zip(folders, manifests, strict=True)):
        check_follows(after, before, (later, earlier))
    for folder, manifest in zip(folders, manifests, strict=True):
        lineage = manifest.lineage
        if lineage is None:
            raise ValueError(
                f"{folder} must be part of a chain: got a folder without one; prepare it with --keep_counts"
            )
        changes = lineage.changes.values()
        evicted = sum(each.evicted_by_age + each.evicted_by_count for each in changes)
        print(
            f"{folder}: window {lineage.window}, {sum(each.values for each in changes):,} values with an id, "
            f"{sum(each.added for each in changes):,} new, {sum(each.returned for each in changes):,} of them back, "
            f"{evicted:,} evicted; fingerprint {fingerprint(manifest)[:12]}"
        )


if __name__ == "__main__":
    try:
        tyro.cli(main)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
