"""Vectors of a package, exactly as it serves them: its rows of few bits, decoded and composed by its own model."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import fbgemm_gpu  # noqa: F401  # registers the operators that programs call
import torch

from dlrm_torchrec.inference.predictor import MODEL, checked_manifest
from dlrm_torchrec.inference.stored_rows import StoredRows
from dlrm_torchrec.schema import DatasetSpec, SparseFeature

BATCH_IDS = 1 << 12  # the model makes vectors of all features for each
Reader = Callable[[torch.Tensor], torch.Tensor]


def open_package(path: Path) -> tuple[DatasetSpec, dict[str, str], Callable[[SparseFeature], Reader]]:
    """The spec of a package, the files of its vocabularies, and what opens the vectors of a feature.

    Raises ValueError when it is no package, or when a file has changed.
    """
    manifest = checked_manifest(path)
    words = {name: str(path / file) for name, file in manifest["vocabularies"].items()}
    spec = DatasetSpec.from_json(manifest["spec"])

    def opened(feature: SparseFeature) -> Reader:
        lookup, columns = _lookup(path, manifest, feature.name)
        place = spec.sparse.index(feature)

        def read(ids: torch.Tensor) -> torch.Tensor:
            return torch.cat([_read(lookup, spec, place, part)[:, columns] for part in ids.split(BATCH_IDS)])

        return read

    return spec, words, opened


def _read(lookup: torch.jit.ScriptModule, spec: DatasetSpec, place: int, ids: torch.Tensor) -> torch.Tensor:
    """Vectors of all features for samples of which each has one id, of the feature at ``place``."""
    lengths = torch.zeros(len(spec.sparse), len(ids), dtype=torch.int32)
    lengths[place] = 1
    with torch.inference_mode():
        found = lookup(ids, lengths.view(-1), torch.ones(len(ids)) if spec.weighted_ids else None)
        vectors: torch.Tensor = found.values()
    return vectors


def _lookup(path: Path, manifest: Mapping[str, Any], feature: str) -> tuple[torch.jit.ScriptModule, slice]:
    """What looks up the vectors of all features in a package, and a feature's columns of them."""
    program = torch.jit.load(str(path / MODEL), map_location="cpu").eval()
    StoredRows(path, manifest["tables"]).attach(program)
    lookups = [module for module in program.modules() if module.original_name == "TableLookup"]
    if not lookups:
        raise ValueError(f"model of package {path} must look vectors up in tables: got none; write the package again")
    (lookup,) = lookups
    own = [place for place, key in enumerate(lookup.keys) if re.fullmatch(rf"{re.escape(feature)}(#\d+)?", key)]
    if not own:
        raise ValueError(f"feature must have a table in {path}: got {feature!r}; choose of {', '.join(lookup.keys)}")
    return lookup, slice(sum(lookup.dims[: own[0]]), sum(lookup.dims[: own[-1] + 1]))
