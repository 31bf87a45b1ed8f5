"""Vectors of a package, exactly as it serves them: its rows of few bits, decoded and composed by its own model."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dlrm_torchrec.inference.predictor import Predictor
from dlrm_torchrec.schema import DatasetSpec, SparseFeature

BATCH_IDS = 1 << 12  # the model makes vectors of all features for each
Reader = Callable[[torch.Tensor], torch.Tensor]


def open_package(path: Path) -> tuple[DatasetSpec, dict[str, str], Callable[[SparseFeature], Reader]]:
    """The spec of a package, the files of its vocabularies, and what opens the vectors of a feature.

    Raises ValueError when it is no package, or when a file has changed.
    """
    manifest = Predictor.load(path).manifest
    words = {name: str(path / file) for name, file in manifest["vocabularies"].items()}
    spec = DatasetSpec.from_json(manifest["spec"])

    def opened(feature: SparseFeature) -> Reader:
        model, columns = _lookup(path, feature.name)
        place = spec.sparse.index(feature)

        def read(ids: torch.Tensor) -> torch.Tensor:
            return torch.cat([_read(model, spec, place, part)[:, columns] for part in ids.split(BATCH_IDS)])

        return read

    return spec, words, opened


def _read(model: torch.jit.ScriptModule, spec: DatasetSpec, place: int, ids: torch.Tensor) -> torch.Tensor:
    """Vectors of all features for samples of which each has one id, of the feature at ``place``."""
    lengths = torch.zeros(len(spec.sparse), len(ids), dtype=torch.int32)
    lengths[place] = 1
    weights = [torch.ones(len(ids))] if spec.weighted_ids else []
    with torch.inference_mode():
        vectors: torch.Tensor = model(torch.zeros(len(ids), len(spec.dense)), ids, lengths.view(-1), *weights)[0]
    return vectors


def _lookup(path: Path, feature: str) -> tuple[torch.jit.ScriptModule, slice]:
    """The model of a package with the vectors of all features in place of its predictions, and a feature's columns.

    The frozen model is one function without the modules that it was made of, so its first result becomes the tensor
    from which it made the KeyedTensor of its tables.
    """
    predictor = Predictor.load(path)
    model = predictor.program
    made: dict[str, Any] = {}
    for node in model.graph.nodes():
        if node.kind() == "prim::SetAttr":
            holder, value = node.inputs()
            if str(holder.type()).endswith(".KeyedTensor"):
                made.setdefault(node.s("name"), value)
    if not {"_keys", "_length_per_key", "_values"} <= made.keys():
        raise ValueError(f"model of package {path} must look vectors up in tables: got none; write the package again")
    next(model.graph.outputs()).node().replaceInput(0, made["_values"])
    keys, dims = ([each.toIValue() for each in made[name].node().inputs()] for name in ("_keys", "_length_per_key"))
    own = [place for place, key in enumerate(keys) if re.fullmatch(rf"{re.escape(feature)}(#\d+)?", key)]
    if not own:
        raise ValueError(f"feature must have a table in {path}: got {feature!r}; choose of {', '.join(keys)}")
    return model, slice(sum(dims[: own[0]]), sum(dims[: own[-1] + 1]))
