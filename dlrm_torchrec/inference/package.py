"""A package: a folder with a model and everything that serving it needs, without any training code."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import fbgemm_gpu
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from dlrm_torchrec import __version__, raw_values
from dlrm_torchrec.inference import encoder, lookups, predictor, stored_rows
from dlrm_torchrec.inference.lookups import FIRST
from dlrm_torchrec.inference.new_folder import new_folder
from dlrm_torchrec.inference.predictor import FORMAT, MANIFEST, MODEL
from dlrm_torchrec.inference.program import program_bytes
from dlrm_torchrec.inference.sequences import history_encoder
from dlrm_torchrec.inference.stored_rows import set_tensor
from dlrm_torchrec.inference.tables.stored import STORED, StoredTensor, tensor_at
from dlrm_torchrec.raw_values import vocabulary_digest
from dlrm_torchrec.schema import DatasetSpec, safe_name, vocabulary_path

_CODE = (
    predictor,
    encoder,
    history_encoder,
    lookups,
    stored_rows,
    raw_values,
)  # what a package needs to load without this library


@dataclass(frozen=True, kw_only=True)
class Release:
    """Which of the models that follow each other a package holds."""

    version: int = 0  # the number of models before it
    window: str = ""  # the name of the data that it was last trained on, such as a day
    trained_until: str = ""  # the end of that data, a time in ISO 8601; a time without a zone is UTC

    def __post_init__(self) -> None:
        try:
            datetime.fromisoformat(self.trained_until or "2000-01-01")
        except ValueError as error:
            raise ValueError(
                f"trained_until must be a time in ISO 8601, or empty: got {self.trained_until!r}; write it such as "
                "2024-05-01T00:00"
            ) from error


def write_package(
    path: str | Path,
    model: torch.jit.ScriptModule,
    spec: DatasetSpec,
    *,
    vocabularies: Mapping[str, str],
    model_facts: Mapping[str, Any],
    metrics: Mapping[str, Any],
    samples: Mapping[str, Any] | None = None,
    ranks: str = "",
    release: Release = Release(),
) -> None:
    """Write the package of a model to ``path``; an old package there stays until the new one is complete.

    Raises ValueError when the vocabularies are not those of the spec, when ``samples`` or ``ranks`` do not fit it, or
    when ``path`` exists and is not a package.

    Args:
        path: the folder of the package
        model: takes dense (B, D), ids (N,), lengths (F * B,) and, if a feature of ``spec`` has weights, weights (N,),
            with features in the order of ``spec``; returns predictions (B, L) for the L labels of ``spec`` and the
            number of ids of each feature that are outside its table (F,); ``SequenceScorer`` says what the model of
            histories takes and returns, and ``NextItemScorer`` that of a model that ranks items
        spec: the data set that the model was trained on, as preparation measured it
        vocabularies: for each feature and mark with encoding vocab, the Parquet file that preparation wrote
        model_facts: facts about the model, which are stored but not used
        metrics: metrics of the model, which are stored but not used
        samples: for a model of histories, the fields of the SamplesConfig by which they were cut
        ranks: the feature of the items that the model ranks; empty means that it ranks none
        release: its place among the models that follow each other; a package of the same model, data and release has
            the same bytes
    """
    path = Path(path).absolute()
    if path.exists() and not (path / MANIFEST).is_file():
        raise ValueError(
            f"{path} must be a package or not exist: got a file or folder without {MANIFEST}; name another folder"
        )
    if (spec.history is None) != (not samples):
        raise ValueError(
            f"samples must be given for a model of histories, and for no other: got {samples!r} for {spec.name!r}; "
            "pass the fields of the run's SamplesConfig"
        )
    if ranks:
        check_ranks(spec, ranks)
    _check_measured(spec)
    _check_vocabularies(spec, vocabularies)
    files = {each.name: vocabulary_path(each) for each in (*spec.sparse, *spec.marks) if each.name in vocabularies}
    digests = {}
    with new_folder(path) as new:
        for name, file in files.items():
            if file not in digests:
                values = pq.read_table(vocabularies[name])["value"]
                digests[file] = write_vocabulary(new / file, values.combine_chunks())
        for module in _CODE:
            code = Path(str(module.__file__))
            (new / code.name).write_text(_standing_alone(code.read_text(encoding="utf-8")), encoding="utf-8")
        tables = {}
        with _stored_apart(model) as stored:
            (new / MODEL).write_bytes(program_bytes(model))
        for tensor, rows in stored:
            file = f"tables/{safe_name(tensor.name)}.npy"
            write_rows(new / file, rows)
            paths = {name: getattr(tensor, name) for name in ("buffer", "starts", "order")}
            tables[tensor.name] = {"file": file, **paths}
        manifest = {
            "format": FORMAT,
            "name": spec.name,
            **asdict(release),
            "fingerprint": "",
            "versions": {
                "dlrm_torchrec": __version__,
                "torch": torch.__version__,
                "fbgemm_gpu": fbgemm_gpu.__version__,
            },
            "spec": spec.to_json(),
            "vocabularies": files,
            "digests": digests,
            "tables": tables,
            "samples": dict(samples or {}),
            "ranks": ranks,
            "model": dict(model_facts),
            "metrics": dict(metrics),
            "files": {str(each.relative_to(new)): sha256_of(each) for each in sorted(new.rglob("*")) if each.is_file()},
        }
        write_manifest(new, manifest | {"fingerprint": fingerprint_of(manifest)})


def fingerprint_of(manifest: Mapping[str, Any]) -> str:
    """What tells one served model from another: 32 hexadecimal digits of SHA-256 of all that predictions depend on.

    It covers the spec, the vocabularies, the program and the rows of the tables, but neither facts nor times.
    """
    contents = [MODEL, *sorted(table["file"] for table in manifest["tables"].values())]
    what = {name: manifest[name] for name in ("spec", "vocabularies", "digests", "tables")}
    what |= {name: manifest[name] for name in ("samples", "ranks") if manifest.get(name)}
    what["files"] = {name: manifest["files"][name] for name in contents}
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:32]


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")


def write_vocabulary(path: Path, values: pa.Array) -> str:
    """Write the values of a vocabulary, in the order of their ids, with the same bytes each time; their digest."""
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table({"value": values}), path)
    return vocabulary_digest([values])


def write_rows(path: Path, rows: np.ndarray[Any, Any]) -> None:
    path.parent.mkdir(exist_ok=True)
    np.save(path, rows, allow_pickle=False)


@contextmanager
def _stored_apart(model: torch.jit.ScriptModule) -> Iterator[list[tuple[StoredTensor, np.ndarray[Any, Any]]]]:
    """The tensors that are stored beside the program, which has none of them within the block."""
    found, kept = list[tuple[StoredTensor, np.ndarray[Any, Any]]](), dict[str, torch.Tensor]()
    for fields in getattr(model, STORED, []):
        tensor = StoredTensor(*fields)
        whole = kept.setdefault(tensor.buffer, tensor_at(model, tensor.buffer))
        if tensor.starts:
            number = sum(each.buffer == tensor.buffer for each, _ in found)
            start = int(tensor_at(model, tensor.starts)[number])
            whole = whole[start : start + tensor.rows * tensor.row_bytes].view(tensor.rows, tensor.row_bytes)
        if tensor.order:
            kept[tensor.order] = tensor_at(model, tensor.order)
        found.append((tensor, whole.numpy()))
    try:
        for path, whole in kept.items():
            set_tensor(model, path, whole.new_empty(0))
        yield found
    finally:
        for path, whole in kept.items():
            set_tensor(model, path, whole)


def _standing_alone(code: str) -> str:
    """The code of a file of this library, which finds the others next to it."""
    return re.sub(r"^from dlrm_torchrec\.(?:\w+\.)*(\w+) import", r"from \1 import", code, flags=re.MULTILINE)


def check_ranks(spec: DatasetSpec, item: str) -> None:
    """Raises ValueError unless the ids of the feature ``item`` stand for values that answers can name."""
    encoding = next(feature.encoding for feature in spec.sparse if feature.name == item)
    if encoding not in ("vocab", "id"):
        raise ValueError(
            f"encoding of {item!r} must be vocab or id for answers to name items: got {encoding!r}; prepare the data "
            "with a vocabulary of items, and train again"
        )


def _check_measured(spec: DatasetSpec) -> None:
    for dense in spec.dense:
        if dense.standardise and None in (dense.mean, dense.deviation):
            raise ValueError(
                f"mean and deviation of feature {dense.name!r} must be numbers: got {dense.mean} and "
                f"{dense.deviation}; take the spec of the prepared folder"
            )


def _check_vocabularies(spec: DatasetSpec, vocabularies: Mapping[str, str]) -> None:
    features = {feature.name: feature for feature in (*spec.sparse, *spec.marks) if feature.encoding == "vocab"}
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


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
