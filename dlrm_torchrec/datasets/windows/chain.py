"""Whether prepared folders follow each other.

``dataset.json`` names the folder before by its fingerprint, and that folder's own place in the chain is a part of its
fingerprint. So no folder can be left out, changed or exchanged unnoticed.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from hashlib import sha256

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
