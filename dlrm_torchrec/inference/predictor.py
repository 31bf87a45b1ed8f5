"""Predicts from raw values with this package. It needs only numpy, pyarrow, torch and fbgemm_gpu.

    python predictor.py rows.json

prints {"probabilities": [...], "unseen": {...}} for a JSON list of objects that name every raw column, with null for a
missing value; ``-`` reads the list from standard input. A model of several labels, or of numbers, prints
{"predictions": {label: [...]}, ...} instead. If the model reads histories, an object is a user, whose names
``HistoryEncoder`` explains, and the result has a list for each of them. If it ranks items, it prints {"items": [[...]],
"scores": [[...]], ...}, the best of all items for each user. A program with this folder on its path passes columns:

    from predictor import Predictor
    Predictor.load("package")({"age": [39, None], "city": ["Kraków", "Paris"]}).probabilities
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from dlrm_torchrec.inference.encoder import Encoder, Inputs
from dlrm_torchrec.inference.lookups import FIRST, Vocabulary
from dlrm_torchrec.inference.sequences.history_encoder import HistoryEncoder, HistoryInputs
from dlrm_torchrec.inference.stored_rows import StoredRows

MANIFEST, MODEL = "package.json", "model.pt"
FORMAT = 3  # 1 hashed texts of whole numbers as texts, and had a single label; 2 had the tables in model.pt
_SINCE_3: dict[str, Any] = {"version": 0, "window": "", "trained_until": "", "fingerprint": "", "tables": {}}
_LATER: dict[str, Any] = {"samples": {}, "ranks": ""}  # fields that came later to packages of format 3
_FIELDS = {"name": str, "spec": dict, "versions": dict, "vocabularies": dict, "files": dict} | {
    name: type(value) for name, value in (_SINCE_3 | _LATER).items()
}  # of the manifest
AnyInputs = Inputs | HistoryInputs
TOP = 10  # items of an answer, if a model ranks items
_HOLDS = {str: "a text", dict: "an object", int: "a whole number"}


@dataclass(frozen=True)
class Prediction:
    """Predictions of B rows, or candidates, for L labels: probabilities, or numbers of a regression."""

    predictions: npt.NDArray[np.float32]  # (B, L)
    unseen: dict[str, int]  # the number of unknown raw values, for each feature that has any
    groups: npt.NDArray[np.int64] | None = None  # candidates, or best items, of each user; None for a model of rows
    items: Any = None  # an Arrow array (B,) of the best items, by their values, if a model ranks items

    def columns(self) -> list[Any]:
        """Arrow arrays of the predictions of each label, after those of items: values, or a list for each user."""
        columns = [pa.array(column) for column in self.predictions.T]
        columns = columns if self.items is None else [self.items, *columns]
        if self.groups is None:
            return columns
        offsets = pa.array(np.append(0, self.groups.cumsum()).astype(np.int32))
        return [pa.ListArray.from_arrays(offsets, column) for column in columns]

    def of_each(self, inputs: Sequence[AnyInputs]) -> list[Prediction]:
        """The predictions for each of the ``inputs`` that were joined; ``unseen`` stays that of all of them."""
        found, first, first_user = list[Prediction](), 0, 0
        for each in inputs:
            count, groups, items = len(each), each.groups, None
            if self.groups is not None and self.items is not None:  # a row is a user, who has some items
                groups = self.groups[first_user : first_user + count]
                first_user, count = first_user + count, int(groups.sum())
                items = self.items[first : first + count]
            found.append(Prediction(self.predictions[first : first + count], self.unseen, groups, items))
            first += count
        return found

    @property
    def probabilities(self) -> npt.NDArray[np.float32]:
        """Those of the first label (B,)."""
        return self.predictions[:, 0]


class Predictor:
    """A package in memory; threads may share it."""

    def __init__(
        self,
        manifest: dict[str, Any],
        vocabularies: Mapping[str, Vocabulary],
        program: Any,
        stored: StoredRows,
        *,
        top: int = TOP,
    ) -> None:
        """``vocabularies`` are by file; ``program`` is model.pt, and reads the rows that are ``stored``.

        A user gets the best ``top`` items if the model ranks items.
        """
        self.manifest = manifest
        self.spec: dict[str, Any] = manifest["spec"]
        self.labels = (self.spec["label"], *(label["name"] for label in self.spec["more_labels"]))
        self.vocabularies, self.stored = vocabularies, stored
        files: dict[str, str] = manifest["vocabularies"]
        marks = self.spec["history"]["marks"] if self.spec.get("history") else []
        for feature in [*self.spec["sparse"], *marks]:
            digest = vocabularies[files[feature["name"]]].digest if feature["name"] in files else ""
            if feature["vocabulary"] not in ("", digest):
                raise ValueError(
                    f"vocabulary of feature {feature['name']!r} must have digest {feature['vocabulary']}: got "
                    f"{digest}; write the package again"
                )
        lookups = {name: vocabularies[file].lookup for name, file in files.items()}
        self.top, self.ranked = top, manifest["ranks"]  # the feature of the items that it ranks; empty: it ranks none
        if self.ranked:
            self.items = _items(self.spec, self.ranked, vocabularies.get(files.get(self.ranked, "")))
        self.encode: Encoder | HistoryEncoder = (
            HistoryEncoder(self.spec, lookups, manifest["samples"], ranks=bool(self.ranked))
            if self.spec.get("history")
            else Encoder(self.spec, lookups)
        )
        self.columns = self.encode.columns  # that a request names
        self.program = program
        stored.attach(program)

    @classmethod
    def load(cls, path: str | Path, *, top: int = TOP) -> Self:
        """The predictor of a package folder; raises ValueError when it is no package, or when a file has changed."""
        path = Path(path)
        manifest = checked_manifest(path)
        found = {file: _vocabulary(path / file) for file in dict.fromkeys(manifest["vocabularies"].values())}
        program = load_program(path, manifest["versions"])
        return cls(manifest, found, program, StoredRows(path, manifest["tables"]), top=top)

    def __call__(self, columns: Mapping[str, Any]) -> Prediction:
        """Predictions for rows of raw values; see ``Encoder`` for their form."""
        return self.run(self.encode(columns))

    def run(self, inputs: AnyInputs) -> Prediction:
        """Predictions for encoded rows."""
        if not len(inputs):
            items = self.items.values[:0] if self.ranked else None
            return Prediction(np.empty((0, len(self.labels)), np.float32), {}, inputs.groups, items)
        also = (torch.from_numpy(self.items.ids), self.top) if self.ranked else ()
        with torch.inference_mode():
            found = [self.program(*map(torch.from_numpy, piece.arrays), *also) for piece in inputs.pieces()]
        *predictions, outside = (torch.cat(parts).numpy() for parts in zip(*found, strict=True))
        totals = (inputs.unseen + outside.reshape(len(found), -1).sum(0)).tolist()
        counts = zip(self.spec["sparse"], totals, strict=True)
        unseen = {feature["name"]: count for feature, count in counts if count}
        if not self.ranked:
            return Prediction(predictions[0], unseen, inputs.groups)
        best, scores = predictions
        is_answer = scores != -np.inf
        items = self.items.values_of(best[is_answer])
        return Prediction(scores[is_answer].reshape(-1, 1), unseen, is_answer.sum(1), items)

    @property
    def answers(self) -> list[str]:
        """The names of the columns of predictions."""
        if self.ranked:
            return ["items", "scores"]
        return ["probability"] if self.is_single_probability else list(self.labels)

    @property
    def is_single_probability(self) -> bool:
        """Whether there is one label, of 0 and 1."""
        return not self.labels[1:] and self.spec["target"] == "binary"

    def named(self, found: Prediction) -> dict[str, Any]:
        """Predictions as JSON: "probabilities" of a single label of 0 and 1, else "predictions" by label.

        They are a list, or one for each user if there are candidates. If the model ranks items: "items" and "scores".
        """
        columns = [column.to_pylist() for column in found.columns()]
        if self.ranked:
            return dict(zip(self.answers, columns, strict=True))
        if self.is_single_probability:
            return {"probabilities": columns[0]}
        return {"predictions": dict(zip(self.labels, columns, strict=True))}


class Items(NamedTuple):
    """The items that may be answers, and the values of all."""

    ids: npt.NDArray[np.int64]  # (N,) ascending
    values: Any  # an Arrow array
    first: int  # the id of its first value

    def values_of(self, ids: npt.NDArray[np.int64]) -> Any:
        """An Arrow array of the values of ids; null for an id that has none, such as that of unseen values."""
        places = ids - self.first
        return self.values.take(pa.array(places, mask=places < 0))


def _items(spec: Mapping[str, Any], name: str, vocabulary: Vocabulary | None) -> Items:
    """Those of a feature: the values of its vocabulary, or ids that are values themselves."""
    if vocabulary is not None:
        known = vocabulary.values.is_valid().to_numpy(zero_copy_only=False)  # null is the place of a free id
        return Items(FIRST + np.flatnonzero(known), vocabulary.values, FIRST)
    ids = np.arange(next(feature["rows"] for feature in spec["sparse"] if feature["name"] == name))
    return Items(ids, pa.array(ids), 0)


def _vocabulary(path: Path) -> Vocabulary:
    values = pq.read_table(path)["value"]
    return Vocabulary.of(values.combine_chunks())


def read_manifest(path: Path) -> dict[str, Any]:
    """The contents of package.json in a folder. Raises ValueError when it is no package."""
    try:
        manifest: dict[str, Any] = json.loads((path / MANIFEST).read_bytes())
        form = manifest["format"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"folder {path} must hold a {MANIFEST}: got {error!r}; name a package's folder") from error
    manifest |= {name: value for name, value in _LATER.items() if name not in manifest}
    if form == 2:
        manifest = _SINCE_3 | manifest
    elif form != FORMAT:
        raise ValueError(f"format of package {path} must be {FORMAT}: got {form!r}; use the package's predictor.py")
    for name, kind in _FIELDS.items():
        if not isinstance(manifest.get(name), kind):
            raise ValueError(
                f"{name} in {path / MANIFEST} must be {_HOLDS[kind]}: got {manifest.get(name)!r:.50}; copy the "
                "package again"
            )
    return manifest


def checked_manifest(path: Path) -> dict[str, Any]:
    """The same, after every file that it lists was compared with its checksum there."""
    manifest = read_manifest(path)
    files: dict[str, str] = manifest["files"]
    tables = [table["file"] for table in manifest["tables"].values()]
    unlisted = [name for name in (MODEL, *manifest["vocabularies"].values(), *tables) if name not in files]
    if unlisted:
        raise ValueError(
            f"files in {path / MANIFEST} must name every file with its sha256: got no {unlisted[0]!r}; copy the "
            "package again"
        )
    check_files(path, files)
    return manifest


def check_files(path: Path, files: Mapping[str, str]) -> None:
    """Raises ValueError unless the ``files`` of the folder ``path`` lie in it and have these SHA-256."""
    for name, sha256 in files.items():
        file = (path / name).resolve()
        if not file.is_relative_to(path.resolve()):
            raise ValueError(f"files of package {path} must lie in it: got {name!r}; load only packages of your own")
        found = "no file"
        if file.is_file():
            with file.open("rb") as opened:
                found = hashlib.file_digest(opened, "sha256").hexdigest()
        if found != sha256:
            raise ValueError(f"{path / name} must have sha256 {sha256}: got {found}; copy the package again")


def load_program(path: Path, versions: Mapping[str, str]) -> Any:
    """The program model.pt of a folder, which torch and fbgemm_gpu of these ``versions`` wrote."""
    try:
        import fbgemm_gpu  # noqa: F401  # registers the operators that the program calls

        return torch.jit.load(str(path / MODEL), map_location="cpu").eval()
    except (ImportError, OSError, RuntimeError) as error:
        found, wanted = str(error).strip().splitlines()[0], f"{versions['torch']} and {versions['fbgemm_gpu']}"
        raise ValueError(f"model of {path} must load: got {found!r}; install torch and fbgemm_gpu {wanted}") from error


def main(arguments: list[str]) -> None:
    """Print the predictions for a JSON file of rows, with the package that contains this file."""
    if len(arguments) != 1:
        sys.exit(__doc__)
    try:
        rows = json.loads(sys.stdin.read() if arguments[0] == "-" else Path(arguments[0]).read_text(encoding="utf-8"))
        columns = {name: [row[name] for row in rows] for name in dict.fromkeys(chain.from_iterable(rows))}
        predictor = Predictor.load(Path(__file__).parent)
        prediction = predictor(columns)
    except (KeyError, TypeError) as error:
        sys.exit(f"error: {arguments[0]} must be a list of objects with the same names: got {error!r}; correct it")
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(json.dumps({**predictor.named(prediction), "unseen": prediction.unseen}))


if __name__ == "__main__":
    main(sys.argv[1:])
