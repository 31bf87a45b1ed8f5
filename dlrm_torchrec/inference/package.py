"""A model as a folder of its own: what serves it needs no training code."""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fbgemm_gpu
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from dlrm_torchrec import __version__
from dlrm_torchrec.inference import predictor
from dlrm_torchrec.inference.predictor import FIRST, FORMAT, MANIFEST
from dlrm_torchrec.schema import DatasetSpec


def write_package(
    path: str | Path,
    model: torch.jit.ScriptModule,
    spec: DatasetSpec,
    *,
    vocabularies: Mapping[str, str],
    model_facts: Mapping[str, Any],
    metrics: Mapping[str, Any],
) -> None:
    """Make ``path`` the package of a model, which stays what it was until the new one is whole.

    ``model`` takes dense (B, D), ids (N,) and lengths (F * B,), features in the order of ``spec``, and gives
    probabilities (B,) and how many ids of each feature lie outside its table (F,). ``vocabularies`` names, per feature
    of encoding vocab, the Parquet file that preparation wrote. ``model_facts`` and ``metrics`` are told, not used.

    ValueError when vocabularies are not those of the spec, or when ``path`` is anything but a package.
    """
    path = Path(path).absolute()
    if path.exists() and not (path / MANIFEST).is_file():
        raise ValueError(
            f"{path} must be a package or not exist: got something without {MANIFEST}; name another folder"
        )
    _check_vocabularies(spec, vocabularies)
    path.parent.mkdir(parents=True, exist_ok=True)
    new, old = (path.with_name(f".{path.name}.{secrets.token_hex(4)}.{what}") for what in ("new", "old"))
    try:
        (new / "vocab").mkdir(parents=True)
        for name, source in vocabularies.items():
            shutil.copyfile(source, new / "vocab" / f"{name}.parquet")
        shutil.copyfile(predictor.__file__, new / "predictor.py")
        torch.jit.save(model, str(new / "model.pt"))
        manifest = {
            "format": FORMAT,
            "name": spec.name,
            "versions": {
                "dlrm_torchrec": __version__,
                "torch": torch.__version__,
                "fbgemm_gpu": fbgemm_gpu.__version__,
            },
            "spec": spec.to_json(),
            "model": dict(model_facts),
            "metrics": dict(metrics),
            "files": {str(file.relative_to(new)): _sha256(file) for file in sorted(new.rglob("*")) if file.is_file()},
        }
        (new / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
        if path.exists():
            path.rename(old)
        new.rename(path)
    finally:
        if old.exists() and not path.exists():
            old.rename(path)
        for rest in (new, old):
            shutil.rmtree(rest, ignore_errors=True)


def _check_vocabularies(spec: DatasetSpec, vocabularies: Mapping[str, str]) -> None:
    features = {feature.name: feature for feature in spec.sparse if feature.encoding == "vocab"}
    absent, unknown = sorted(features.keys() - vocabularies), sorted(vocabularies.keys() - features)
    if absent or unknown:
        raise ValueError(
            f"vocabularies must be those of {spec.name!r}: got no {absent} and unknown {unknown}; take the files from "
            "vocab/ of the prepared folder, or set the encoding of these features to 'id' when requests are to hold ids"
        )
    for name, feature in features.items():
        try:
            schema, rows = pq.read_schema(vocabularies[name]), pq.read_metadata(vocabularies[name]).num_rows
        except (OSError, pa.ArrowException) as error:
            raise ValueError(
                f"vocabulary of {name!r} must be a Parquet file: got {error}; prepare the data again"
            ) from error
        kinds = [str(field.type) for field in schema if field.name == "value"]
        if kinds not in (["int64"], ["string"]) or rows != feature.rows - FIRST:
            raise ValueError(
                f"vocabulary of {name!r} must have {feature.rows - FIRST} values of int64 or string: got {rows} of "
                f"{kinds}; take the one that the model was trained with"
            )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
