"""Files of assignments: which classes the ids of a table have, in ``<table>.safetensors`` of a folder.

``codes`` (levels, rows), int16 or int32, holds the class of every id on each level. The metadata say how many classes
each level has (``classes``), how they were made (``made``), and by a ``digest`` which codes they are. ``hash_classes``
other than 0 adds a hash of ids with ``hash_seed``, so that ids of one class differ. The file may hold the table's
``weight`` and moments, too, see ``table_files``; a table whose file has no codes stays plain.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

import torch
from safetensors import safe_open

from dlrm_torchrec.embeddings.compositional.partitions.arithmetic import Hash
from dlrm_torchrec.embeddings.compositional.partitions.assigned import Assigned
from dlrm_torchrec.embeddings.compositional.partitions.base import Partition
from dlrm_torchrec.embeddings.compositional.partitions.together import Together


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """The classes of a table's ids: listed, and by a hash beside them unless ``hash_classes`` is 0."""

    assigned: Assigned
    made: str  # how, for people
    hash_classes: int = 0
    hash_seed: int = 1

    @property
    def partition(self) -> Partition:
        """What a table is made of."""
        if not self.hash_classes:
            return self.assigned
        return Together((self.assigned, Hash(self.assigned.num_ids, self.hash_classes, self.hash_seed)))

    @property
    def digest(self) -> str:
        """What tells one assignment from another: 16 hexadecimal digits of SHA-256."""
        digest = sha256(json.dumps([self.assigned.classes, self.hash_classes, self.hash_seed]).encode())
        for codes in self.assigned.codes:
            digest.update(codes.to(torch.int32).numpy().astype("<i4").tobytes())
        return digest.hexdigest()[:16]

    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensors of the file."""
        wide = max((codes.dtype for codes in self.assigned.codes), key=lambda dtype: dtype.itemsize)
        return {"codes": torch.stack([codes.to(wide) for codes in self.assigned.codes])}

    def metadata(self) -> dict[str, str]:
        """The metadata of the file."""
        return {
            "classes": json.dumps(self.assigned.classes),
            "hash_classes": str(self.hash_classes),
            "hash_seed": str(self.hash_seed),
            "made": self.made,
            "digest": self.digest,
        }


def read_assignment(folder: str, table: str, rows: int) -> Assignment | None:
    """The assignment of a table of ``rows`` ids; None if the folder has no codes for it.

    Raises ValueError when the codes are of another number of ids, or not those that were written.
    """
    path = os.path.join(folder, f"{table}.safetensors")
    metadata = _metadata(path)
    if metadata is None:
        return None
    with safe_open(path, framework="pt") as file:
        codes: torch.Tensor = file.get_tensor("codes")
    if codes.ndim != 2 or codes.size(1) != rows:
        raise ValueError(
            f"codes of table {table!r} must be of its {rows} ids: got {tuple(codes.shape)} in {path}; assign classes "
            "again for this data set"
        )
    found = Assignment(
        assigned=Assigned(tuple(codes), complementary=False),
        made=metadata["made"],
        hash_classes=int(metadata["hash_classes"]),
        hash_seed=int(metadata["hash_seed"]),
    )
    if found.digest != metadata["digest"]:
        raise ValueError(
            f"codes of table {table!r} must have the digest {metadata['digest']} that {path} names: got "
            f"{found.digest}; write the file again with recipes/cluster_tables.py"
        )
    return found


def digests(folder: str) -> dict[str, str]:
    """The digest of the codes of each table that has some in ``folder``; only heads of files are read."""
    names = (
        sorted(name for name in os.listdir(folder) if name.endswith(".safetensors")) if os.path.isdir(folder) else []
    )
    found = {name.removesuffix(".safetensors"): _metadata(os.path.join(folder, name)) for name in names}
    return {name: metadata["digest"] for name, metadata in found.items() if metadata is not None}


def check_assignments(folder: str, tables: Sequence[str]) -> None:
    """Raises ValueError when ``folder`` has codes for none of the tables."""
    known = digests(folder)
    if not known.keys() & set(tables):
        raise ValueError(
            f"assignments must be a folder with codes of a table, in <table>.safetensors: got {folder!r} with codes of "
            f"{sorted(known) or 'no table'}, and the tables are {', '.join(tables)}; make it with "
            "recipes/cluster_tables.py"
        )


def _metadata(path: str) -> dict[str, str] | None:
    """The metadata of a file; None if it does not exist or has no codes. ValueError when some are missing."""
    if not os.path.exists(path):
        return None
    with safe_open(path, framework="np") as file:
        has_codes, metadata = "codes" in file.keys(), file.metadata() or {}  # noqa: SIM118  # no dictionary
    missing = {"classes", "hash_classes", "hash_seed", "made", "digest"} - metadata.keys()
    if has_codes and missing:
        raise ValueError(
            f"{path} must say what its codes are: got no {', '.join(sorted(missing))} in its metadata; write it with "
            "recipes/cluster_tables.py, which also takes your own file of classes"
        )
    return metadata if has_codes else None
