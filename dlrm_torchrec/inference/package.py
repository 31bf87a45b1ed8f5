"""A package: a folder with a model and everything that serving it needs, without any training code."""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fbgemm_gpu
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from dlrm_torchrec import __version__, raw_values
from dlrm_torchrec.inference import encoder, lookups, predictor
from dlrm_torchrec.inference.lookups import FIRST
from dlrm_torchrec.inference.predictor import FORMAT, MANIFEST, MODEL
from dlrm_torchrec.raw_values import vocabulary_digest
from dlrm_torchrec.schema import DatasetSpec, vocabulary_path

_CODE = (predictor, encoder, lookups, raw_values)  # what a package needs to load without this library


def write_package(
    path: str | Path,
    model: torch.jit.ScriptModule,
    spec: DatasetSpec,
    *,
    vocabularies: Mapping[str, str],
    model_facts: Mapping[str, Any],
    metrics: Mapping[str, Any],
) -> None:
    """Write the package of a model to ``path``; an old package there stays until the new one is complete.

    Raises ValueError when the vocabularies are not those of the spec, or when ``path`` exists and is not a package.

    Args:
        path: the folder of the package
        model: takes dense (B, D), ids (N,), lengths (F * B,) and, if a feature of ``spec`` has weights, weights (N,),
            with features in the order of ``spec``; returns predictions (B, L) for the L labels of ``spec`` and the
            number of ids of each feature that are outside its table (F,)
        spec: the data set that the model was trained on, as preparation measured it
        vocabularies: for each feature with encoding vocab, the Parquet file that preparation wrote
        model_facts: facts about the model, which are stored but not used
        metrics: metrics of the model, which are stored but not used
    """
    path = Path(path).absolute()
    if path.exists() and not (path / MANIFEST).is_file():
        raise ValueError(
            f"{path} must be a package or not exist: got a file or folder without {MANIFEST}; name another folder"
        )
    _check_measured(spec)
    _check_vocabularies(spec, vocabularies)
    files = {each.name: vocabulary_path(each) for each in spec.sparse if each.name in vocabularies}
    path.parent.mkdir(parents=True, exist_ok=True)
    new, old = (path.with_name(f".{path.name}.{secrets.token_hex(4)}.{what}") for what in ("new", "old"))
    try:
        (new / "vocab").mkdir(parents=True)
        for name, file in files.items():
            shutil.copyfile(vocabularies[name], new / file)
        for module in _CODE:
            code = Path(str(module.__file__))
            (new / code.name).write_text(_standing_alone(code.read_text(encoding="utf-8")), encoding="utf-8")
        torch.jit.save(model, str(new / MODEL))
        manifest = {
            "format": FORMAT,
            "name": spec.name,
            "versions": {
                "dlrm_torchrec": __version__,
                "torch": torch.__version__,
                "fbgemm_gpu": fbgemm_gpu.__version__,
            },
            "spec": spec.to_json(),
            "vocabularies": files,
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


def _standing_alone(code: str) -> str:
    """The code of a file of this library, which finds the others next to it."""
    return re.sub(r"^from dlrm_torchrec\.(?:\w+\.)*(\w+) import", r"from \1 import", code, flags=re.MULTILINE)


def _check_measured(spec: DatasetSpec) -> None:
    for dense in spec.dense:
        if dense.standardise and None in (dense.mean, dense.deviation):
            raise ValueError(
                f"mean and deviation of feature {dense.name!r} must be numbers: got {dense.mean} and "
                f"{dense.deviation}; take the spec of the prepared folder"
            )


def _check_vocabularies(spec: DatasetSpec, vocabularies: Mapping[str, str]) -> None:
    features = {feature.name: feature for feature in spec.sparse if feature.encoding == "vocab"}
    absent, unknown = sorted(features.keys() - vocabularies), sorted(vocabularies.keys() - features)
    if absent or unknown:
        raise ValueError(
            f"vocabularies must be those of {spec.name!r}: got no {absent} and unknown {unknown}; take the files from "
            "vocab/ of the prepared folder, or set the encoding of these features to 'id' if requests will contain ids"
        )
    for name, feature in features.items():
        try:
            table = pq.read_table(vocabularies[name])
        except (OSError, pa.ArrowException) as error:
            raise ValueError(
                f"vocabulary of {name!r} must be a Parquet file: got {error}; prepare the data again"
            ) from error
        kinds = [str(field.type) for field in table.schema if field.name == "value"]
        if kinds not in (["int64"], ["string"]) or len(table) != feature.rows - FIRST:
            raise ValueError(
                f"vocabulary of {name!r} must have {feature.rows - FIRST} values of int64 or string: got {len(table)} "
                f"of {kinds}; take the vocabulary that the model was trained with"
            )
        digest = vocabulary_digest(table["value"].chunks)
        if feature.vocabulary not in ("", digest):
            raise ValueError(
                f"vocabulary of {name!r} must have digest {feature.vocabulary}: got {digest}; take the vocabulary that "
                "the model was trained with"
            )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
